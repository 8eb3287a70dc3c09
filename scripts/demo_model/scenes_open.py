"""Scenes without sentences of their own: hundreds of situations that are answered with what fits them all.

The detailed scenes teach what to say about a bicycle or a break-up. These teach what to say where the speaker knows
nothing in particular: the general sentences of the domain, and the name of the thing that is for sale.
"""

from __future__ import annotations

from . import open_daily, open_deals, open_people
from .scene import Scene

# For people who divide things or plan together, whatever it is.
SHARING: dict[str, tuple[str, ...]] = {
    "support": (
        "I hear you, [and your part counts as much as mine|this matters to you and that is enough for me].",
        "It makes sense that you [want to be sure|ask for that|think ahead], [and I want this to work for you too|].",
        "No wonder you [bring it up|ask], [nobody likes to come up short|it has been on your mind].",
        "You deserve [your fair part|an easy time with this|a good night too].",
        "I care about [how this goes for you|you having enough], [so tell me what you need|].",
        "That sounds [tough|stressful|hard], [so let us find a way that helps you|and I don't want you to go without].",
        "It is understandable that you [need a bit more|see it that way|worry about it].",
        "I'm on your side here, [we'll find something that suits us both|nobody has to lose].",
        "You're not alone with it, [we sort this out together|I'll help where I can].",
        "It's okay to feel [uneasy|nervous] about asking, [and I'm glad you did|].",
    ),
    "cool": (
        "[There is|We have] only so much [to go round|of it].",
        "[It comes down to|It is a question of] numbers, [nothing more|and they are simple].",
        "[Everyone|Each side] has [reasons|needs] of some kind.",
        "The [amount|time] is fixed, so [someone gets less|it has to be divided].",
        "It is [a small matter|a practical question], [and it can be settled in a minute|].",
        "[Both|Two] ways would work [on paper|in practice].",
        "The facts are [on the table|known].",
        "One of us [does more|gets less] either way.",
    ),
    "disclosure": (
        "When I was a student we [drew lots for everything|had a list on the fridge], [and it mostly worked|].",
        "I used to [give in at once|count every little thing], [and it did me no good|and I gave it up].",
        "In my family [the youngest chose first|everything was split to the last crumb].",
        "I once [forgot my half of the plan|ended up with nothing at all], [so I write things down now|].",
        "My brother and I [fought over such things for years|flip a coin in cases like this].",
        "I remember [a week when nobody kept to the plan|how we quarrelled over less than this].",
        "I grew up with four others, so [sharing comes easily|I learned to ask early].",
        "My flatmate and I had [the same talk|exactly this] last spring.",
        "Last summer I [took too much on|got this wrong], and [I paid for it|it taught me something].",
        "My best friend says I [plan too much|never say what I want], [and there is something in it|].",
    ),
    "polite_question": (
        "Could you tell me [what matters most to you|why you need it|what you could do without]?",
        "May I ask [how much you really need|when you need it|what you have in mind for me]?",
        "Would you mind telling me [how you got to that|what you would do in my place]?",
        "If I may ask, [would half be enough|is there a reason for that]?",
        "Could we [look at it once more|write it down|hear what the others think]?",
        "Would you like to [choose first|go first|decide this one]?",
        "Please tell me, [what would be best for you|which part can't wait]?",
        "Do you mind if I [ask what it is for|take a minute to think]?",
    ),
    "blunt_question": (
        "How much do you need? [A number.|]",
        "What do I get [for it|in return]?",
        "Why you? [Give me one reason.|]",
        "Who decided that?",
        "And who does the rest?",
        "When exactly? [Name a time.|]",
        "What is left [for me|then]?",
        "Is that [everything|your last word]?",
    ),
    "polite_advice": (
        "Please [write it down|tell the others|keep it in mind] so that nobody forgets.",
        "May I suggest [a list|taking turns|a short test of a week]?",
        "Might I suggest [that each of us takes half|we decide tomorrow|a coin toss]?",
        "Could you [let me know by tonight|bring yours along|keep a little in reserve]?",
        "Would you mind [waiting until tomorrow|checking once more what we have]?",
        "If you'd like, [start with your part|take first pick this time].",
        "Kindly [leave a little for later|tell me early if it changes].",
        "If I may, I would [keep some in reserve|split it evenly and be done].",
    ),
    "blunt_advice": (
        "Write it down. [Then stick to it.|]",
        "Take half. [Leave the rest.|]",
        "Decide [now|today]. [Enough talk.|]",
        "Check what we have first.",
        "Ask the others [before you promise anything|first].",
        "Do your part. [I do mine.|]",
        "Bring your own next time.",
        "Keep it short.",
    ),
    "polite_filler": (
        "Excuse me for [asking again|being so direct].",
        "Pardon [the question|my slow answer].",
        "It would be lovely to [settle this|find a way that suits both of us].",
        "With respect, there are two of us.",
        "I apologize for [coming back to it|the short answer].",
        "Please take your time.",
        "At your convenience, then.",
        "If that suits you, [we talk again tonight|I get started].",
    ),
    "blunt_filler": (
        "That's it.",
        "Next point.",
        "No more talk.",
        "Short and simple.",
        "Enough said.",
        "Facts only.",
    ),
    "thanks": (
        "Thank you for [asking me first|thinking of me|saying it openly|being so fair about it].",
        "Thanks for [the offer|bringing it up|doing the counting|making a start].",
        "I appreciate that you [thought it through|leave me a choice|speak plainly].",
        "I'm grateful [for the offer|that you share|for a clear word].",
        "Many thanks for [your patience|working this out].",
        "That you thought of me means a lot to me.",
        "I am thankful for [your help|that].",
    ),
    "agree": (
        "Yes, [let's do it like that|that way both of us have enough|I can do my half].",
        "Sure, [take it|I'm in|that leaves enough for me].",
        "Agreed[, half for you and half for me|, and nobody has to wait|, that is simple].",
        "That sounds [fair|good|reasonable] to me[, and it saves time|].",
        "Good idea[, we lose nothing by it|, then it's settled|].",
        "Fair enough, [you need it more than I do|your turn this time].",
        "That works for me[, and for the others too|].",
        "Of course, [go ahead|you can have it].",
        "Absolutely[, I wanted to say the same|, and I'll write it down|].",
        "You're right[, that is the simplest way|, it should go like that|].",
        "I agree[, so that's settled| to all of it|].",
        "Deal[, starting today|].",
        "I can live with that[, as long as it goes both ways|].",
    ),
    "refuse": (
        "No, [I need my part too|that leaves me with too little|not like that].",
        "I can't agree to that[, it's too one-sided|].",
        "That doesn't suit me[; I'd rather split it evenly|; half for each is my limit|].",
        "I'd rather [keep what I have|leave it as it is|take turns].",
        "I don't agree[; the others count too|, not this time|].",
        "I see it differently[; I did my share already|; it should be half and half|].",
        "My answer is no[, at least this week|].",
        "Not this time. [I was counting on it.|Ask me again next week.|]",
        "I can't [give that up|spare it|take that on as well].",
        "I have to decline[, it would be too much for me|].",
    ),
    "remark": (
        "There is [a list|a calendar] in the kitchen.",
        "[The others|Two of the others] come back tonight.",
        "It [usually|mostly] takes an hour.",
        "[Half of it|A part of it] is left.",
        "[Next week|Tomorrow] things look different again.",
        "Plans [change|move] with the weather.",
        "What is left over can wait.",
        "It comes down to who needs what [and when|].",
    ),
}

# For somebody who has just been done a kindness.
KINDNESS: dict[str, tuple[str, ...]] = {
    **SHARING,
    "thanks": (
        "Thank you, [that is so kind of you|you saved my day|I didn't expect that at all].",
        "Thank you [so much|very much|from the bottom of my heart] for [doing this|thinking of me|the trouble you took].",
        "Thanks[ a lot| so much|], [that helps me so much|I had no time for it myself|I owe you one].",
        "I really appreciate [it|that you did this|the work you put into it].",
        "I'm so grateful, [nobody has done that for me in a long time|it was worrying me all week].",
        "Many thanks, [you are a great help|that was generous].",
        "That means a lot to me, [more than you think|today of all days].",
        "I'm thankful for [people like you|every bit of help].",
        "I am much obliged to you[ for this|].",
    ),
    "support": (
        "You deserve [a rest after all that|a good coffee for it], [and I mean it|].",
        "That must have been a lot of work, and I hear you if you are tired now.",
        "I care about you too, [so don't wear yourself out|so sit down for a minute].",
        "No wonder you are tired [after that|today].",
        "It's okay to feel [worn out|tired] after such a day.",
        "Be kind to yourself too, [not only to others|].",
        "Sending you [a hug|a big hug] for it.",
        "I'm proud of you for [seeing it through|taking that on].",
    ),
    "cool": (
        "Noted.",
        "So that is done.",
        "[Good to know.|All right.] That is one thing less [on the list|to do].",
        "It had to be done [some time|by somebody].",
        "That [saves|leaves] an hour.",
        "All right, then the matter is closed.",
        "It is fine either way.",
    ),
    "refuse": (
        "No, [that is too much|you should keep it|I can't take that].",
        "I'd rather [do it myself|pay for it|you had asked first].",
        "I can't accept that[, it is worth too much|].",
        "I have to decline[; keep it for somebody who needs it more|].",
        "That was not needed.",
    ),
    "remark": (
        "I saw it [this morning|when I came home].",
        "It looks [like new|better than before].",
        "[The whole house|Everybody] noticed.",
        "It was [on my list|waiting] for weeks.",
        "There is coffee in the kitchen.",
        "The weather [held|was kind] today.",
    ),
}

DAILY = Scene("open", {}, open_daily.OPENINGS, open_deals.LIFE_PROPOSALS, open_daily.FOLLOWUPS)
PEOPLE = Scene("open", {}, open_people.OPENINGS, open_deals.LIFE_PROPOSALS, open_people.FOLLOWUPS)
KIND = Scene("open", {}, open_people.KINDNESSES, open_deals.SHARE_PROPOSALS, open_people.KINDNESSES)
SALE = Scene(
    "open",
    {
        "item": open_deals.ITEMS,
        "flaw": open_deals.FLAWS,
        "extra": open_deals.EXTRAS,
        "reason": open_deals.REASONS,
        "time": open_deals.TIMES,
    },
    open_deals.SALE_OPENINGS,
    open_deals.SALE_PROPOSALS,
    open_deals.SALE_OPENINGS,
    prices=(20, 900),
)
SHARE = Scene("open", {}, open_deals.SHARE_OPENINGS, open_deals.SHARE_PROPOSALS, open_deals.SHARE_OPENINGS)
