"""Proposals that fit every scene of a domain: many wordings of an offer, a plan, a view, so that the
model learns to know a proposal by what it does and not by the words of one scene."""

from __future__ import annotations

# What may follow a proposal, or turn a statement into one.
TAGS: tuple[str, ...] = (
    "[Do you agree|Would you agree|Can you agree]?",
    "[What do you say|What do you think|How does that sound|Does that sound all right]?",
    "[Deal|Okay|Agreed|Fair|Right|Yes or no|All right]?",
    "[Would that suit you|Does that suit you|Would that work|Is that fine with you|Is that okay]?",
    "[Are you in|Are you with me|Can we do that|Shall we do that|Shall we settle on that]?",
    "[Don't you think|Wouldn't you say|Do you see it that way too|Am I right]?",
    "[Tell me if that is all right|Let me know if you can live with that|Say yes or no].",
    "[That would be my offer|That is my suggestion|That is what I propose|That is how I see it].",
)

_GOODS = "[bike|table|camera|guitar|phone|desk|bed|stove|wardrobe|piano|tent|boat|drill|laptop|rug|jacket]"
_PLACE = "[at the station|at the market|in front of the library|at your door|at my place|by the bridge|near the bank]"
_HOUR = "[at five|at six|at eight|at noon|around ten|after work|before lunch|in the evening]"
_DAY = (
    "[on Monday|on Tuesday|on Friday|tomorrow|the day after tomorrow|on the third|on the fifteenth|next week|tonight]"
)
_EXTRA = "[the cover|the lamp|the charger|the box|the bag|the cushions|the spare part|the cable|the lock|the shelf]"
_SELF = "[carry it down|take it apart|bring a van|pay for the petrol|clean it|do the repair|come by train]"

SALES: tuple[str, ...] = (
    "[I'd|I would] [take|buy|have] the {item} for ${offer}[ if {extra} comes along| if you keep it until {time}|].",
    "[I'd|I would] [take|buy] it for {offer}[, provided that {extra} is included| provided it works|, no questions asked].",
    f"[I'd|I would] give you {{offer}} for the {_GOODS}[ and {_SELF} myself|, with {_EXTRA} thrown in|].",
    "{offer}, [in cash|paid today|paid at the door|by transfer], and I [collect it|come for it] {time}.",
    f"{{offer}} for everything[, and I {_SELF} myself| and no more messages|, lamp and all].",
    f"For {{offer}} I would [come|be there] {_DAY} and {_SELF}.",
    f"[Meet me|Let us meet|We could meet] {_PLACE} {_HOUR}, and [you get|I pay|I bring] {{offer}}.",
    f"[Come|Bring it] {_PLACE} {_DAY} and I'll [pay|hand you|have] {{offer}}[ ready for you|].",
    "[With|Considering|Because of] {flaw}, {offer} is [what I'd pay|as far as I'd go|what it is worth to me].",
    "[With that mileage|At that age|In that state|With those marks], [I'd pay|I'd say|I'd go to] {offer}.",
    "[Then|So|Well then], {mid} [and we both save time|and it is done|as a middle way]?",
    "We could [meet in the middle|split the difference] [at ${mid}|and say {mid}].",
    f"[Half|A part] now and [half|the rest] {_DAY}, {{offer}} [in all|in total|altogether].",
    f"[Put|Let's put] the [handover|pick-up|visit|viewing] [of the {_GOODS}|of the {{item}}|] {_DAY}[, {_HOUR}|].",
    f"[I pick it up|I could fetch it|Let me collect it] {_DAY} {_HOUR}[, if you keep it for me|].",
    f"[If you|Provided you] [leave me {_EXTRA}|add {_EXTRA}|deliver it], I [pay|would pay] {{mid}}.",
    "[Take|Knock] [ten|twenty|fifty] off [and I'm yours|and I come today|because of {flaw}].",
    "[My|The] [last|best|top] offer is {offer}[ and not a cent more|, take it as it is|].",
    "I think [{ask} is too much and {offer} is right|{offer} is what these go for|the price should be {offer}].",
    "[Since|As] {reason}, [could it be {offer}|would you go to {offer}|I can only pay {offer}]?",
    f"I swap my {_GOODS} for the {{item}}[, no money involved| and add {{offer}}|].",
    "[Two hundred|One fifty|Ninety|Sixty|Three hundred|Forty] and it's [gone|mine|sold], [today|this evening|{time}].",
    "[Keep|Hold] it for me until {time}, and I pay [the full {ask}|{ask} without haggling].",
    "[I'd rather rent|I'd rather pay] by the month, [{offer} each time|and keep it simple].",
)

_FOOD = "[food|water|firewood]"
_NUM = "[one|two|three|1|2|3]"
_CHORE = "[the dishes|the bins|the bathroom|the shopping|the stairs|the windows|the cooking|the laundry]"
_BILL = "[the electricity|the internet|the rent|the petrol|the heating|the tickets|the groceries|the taxi]"
_JOB = "[the slides|the report|the survey|the drawings|the budget|the talk|the tables|the introduction]"
_OUT = "[the lake|the cinema|the hills|the museum|the beach|a concert|the climbing hall|the swimming pool]"

SHARING: tuple[str, ...] = (
    f"[I'd|I would|I could] give up [all my|my|one of my] {_FOOD} for {_NUM} of your {_FOOD}.",
    f"[Let me|I'd like to|Can I] [have|keep|take] {_NUM} {_FOOD} and [you get|you take|you keep] {_NUM} {_FOOD}.",
    f"{_NUM} {_FOOD}, {_NUM} {_FOOD} and {_NUM} {_FOOD} [for me|for us], the rest [is yours|goes to you].",
    f"You [get|take] all the {_FOOD}, I [get|take] all the {_FOOD}, and the {_FOOD} is [shared|split|halved].",
    f"[I need|We need] more {_FOOD} [for the baby|for the dog|for the fire|because of the heat], so {_NUM} of them [to me|for me].",
    f"[What if|How about] I [leave you|hand you|let you have] {_NUM} {_FOOD} [against|in exchange for] {_NUM} {_FOOD}?",
    f"We could [split|share|pay] {_BILL} [by person|by room|in equal parts|by days|by how much each uses].",
    f"[You three pay|The others pay|I pay] [a third|half|two thirds|a quarter] of {_BILL}[, as there are more of you|].",
    f"[I do|I'd do] {_CHORE} [all month|every Sunday|on weekdays] and you do {_CHORE}.",
    f"[Whoever comes home first|The one who is late|The loser of a coin toss] does {_CHORE}.",
    f"[Let's|We should|We could] [swap|trade|change] {_CHORE} for {_CHORE}[ from next month| this week|].",
    f"[You write|You do|You make] {_JOB}, and I [write|do|make] {_JOB} [by Friday|until Monday|tonight].",
    f"[I take over|Let me do] {_JOB} [completely|alone], if you [present it|check it|do the rest].",
    f"[Let's|We could|We should] go to {_OUT} {_DAY}[ and leave {_HOUR}|, and be back by dark|].",
    f"[Meet|Let's meet|We meet] {_PLACE} {_HOUR}[ and go on together|, not later|].",
    f"[Rather|I'd rather have] {_OUT} than {_OUT}, [at least this time|as it costs less].",
    f"[Put|Move|Shift] [it|the meeting|the trip] to {_HOUR} {_DAY}.",
    "[Everybody brings|Each of us brings] [something to eat|ten dollars|a dish], and [I drive|you drive].",
    "[First come, first served|Youngest first|We draw lots|We take turns]: that is [the simplest way|fair to all].",
)

_HABIT = (
    "[answering work messages at night|looking at my phone in bed|drinking coffee in the evening|saying yes to everyone"
    "|checking the news all day|working through lunch|lending money to him|calling her every day|eating at the desk]"
)
_STEP = (
    "[talk to my boss|see a doctor|take a week off|write her a letter|ask for help|move out|tell them the truth|sell the car"
    "|join a club|sleep with the window open|go back to school|say no this time|make a list|apologise first|let it rest|cook at home"
    "|cut down on sugar|get a second opinion|book the trip|leave the party early|start over|delete the app|visit them in spring]"
)

TROUBLES: tuple[str, ...] = (
    f"I think I [need to|should|have to|ought to] [stop|give up|cut out] {_HABIT}.",
    f"I [think|guess|believe|suppose|feel] I [should|must|ought to|need to] {_STEP}.",
    f"[Maybe|Perhaps] it's [best|time|wiser|better] to {_STEP}.",
    f"[From now on|Starting Monday|As of today], no more {_HABIT}.",
    f"[It would be|It might be] [good|smart|right|healthy] to {_STEP}[ before it gets worse| soon|].",
    f"I'm [going|planning|about|minded] to {_STEP}[ this weekend| tomorrow| next month|].",
    "[I'd say|In my view|If you ask me,] [it's their turn to call|nobody is to blame|rest matters more than marks|honesty comes first].",
    "[Friends|Neighbours|Brothers and sisters|Colleagues] should [help each other|tell the truth|ask before they judge|share the work].",
    "[One bad day|One mistake|A slow start|An honest no] [doesn't ruin a year|isn't the end|is not a crime|hurts nobody].",
    f"[What if|How about|Suppose] I {_STEP} and [see what happens|wait a week|leave the rest for later]?",
    f"[Wouldn't it be|Isn't it] [better|wiser|fairer] to {_STEP}?",
    "[I want|I've decided|I plan] to {plan}, [whatever they say|even if it is hard|starting today].",
    "[The right thing|The next step|All that is left] is to {plan}[, I think|].",
    "[Let's|We could] [talk about it tomorrow|go through it step by step|start with the easy part|leave it for tonight].",
)
