"""Situations with and about people outside the detailed scenes."""

from __future__ import annotations

OPENINGS: tuple[str, ...] = (
    (
        "My [older|younger|little] brother hasn't spoken to me since [Easter|last summer|the barbecue in June]. "
        "I honestly don't know what I did."
    ),
    (
        "[My sister|My twin sister] got engaged to my ex. The wedding is in [May|October|three weeks] and I'm "
        "supposed to be a bridesmaid."
    ),
    "My mother-in-law [rearranged|emptied] our kitchen cupboards again while we were [at work|in Spain|at the cinema].",
    (
        "My stepson, who's [nine|eleven|thirteen], told me tonight that I'm [not his real dad|just the man who "
        "lives here]."
    ),
    (
        "I found my birth mother's name in [an old file|a letter from the agency|a shoebox in the attic]. She "
        "lives [forty minutes|two bus rides|one town] away from me."
    ),
    (
        "We've been approved to adopt! After five years of forms, a little [girl named "
        "[Ada|Ines]|boy named [Milo|Jonah]] is coming home in [spring|March]."
    ),
    "My grandad turned [90|91|95] yesterday and asked me [three times|twice] who I was.",
    "I have a twin. People only ever ask how [she|he] is doing, even at my own [birthday|graduation|housewarming].",
    (
        "[Dad's|Grandpa's] funeral is on [Friday|Monday|Thursday] and they want me to read something. I've "
        "never read anything out loud in my life."
    ),
    "nobody called on my birthday, i turned [34|41|27], not even my [brother|mum|oldest friend]",
    "My cousin [Leo|Tamsin|Rafael] copied my wedding, right down to the [blue napkins|paper lanterns|lemon cake].",
    (
        "Grandma left the [house|piano|whole farm] to me and nothing to my [two sisters|three "
        "cousins|brothers]. Now nobody in the family picks up when I call."
    ),
    (
        'I came out to my parents [last night|on Sunday|over dinner]. My dad said "okay" and [went out to mow '
        "the lawn|turned the football back on]."
    ),
    "My [son|nephew|grandson] just told me he's gay and asked me not to tell his [father|grandmother|mother] yet.",
    (
        "It's my first [Christmas|Thanksgiving|New Year] without the kids. They're at their [mother's|dad's] "
        "place until the [27th|second]."
    ),
    (
        "The whole family is coming to us for [Christmas|Eid|Diwali] this year, all "
        "[nineteen|twenty-two|fourteen] of them, and I can't cook rice without burning it."
    ),
    (
        "[My daughter|My son] came home from school with a torn [coat|backpack|jumper] and said [nothing "
        "happened|it was an accident]. I don't believe it."
    ),
    "I'm fifteen and they made a group chat about me. [Twenty-three|Eighteen|Thirty] people are in it.",
    "The school rang. My [son|boy] bit another child [over a crayon|in the lunch queue|during story time].",
    (
        "My daughter got into [medical school|art college|the police academy]!! First one in our family [ever|, "
        "and we've been dancing in the hallway]."
    ),
    (
        "My [sixteen|fourteen|seventeen]-year-old only comes out of the [bathroom|bedroom] for [cereal|the wifi "
        "password|money]."
    ),
    (
        "We drove our [youngest|only child|eldest] to university [on Saturday|yesterday] and the house is so "
        "quiet that I can hear the [fridge|clock|boiler]."
    ),
    (
        "The baby has slept [two|three] hours since [Tuesday|the weekend]. I put the [milk|car keys|butter] in "
        "the washing machine this morning."
    ),
    (
        "My [sister-in-law|best friend|office mate] is pregnant again, after [one month|two months] of trying. "
        "We're in year [four|five|six]."
    ),
    (
        "Everyone at the [baby shower|christening|family lunch] asked when it would be our turn. I went and hid "
        "in the [bathroom|coat cupboard|garden]."
    ),
    (
        "[Our toddler|My two-year-old] is in hospital with [croup|pneumonia|a bad fever] and they only let one "
        "of us stay overnight."
    ),
    "My best friend since [primary school|kindergarten|we were six] takes [nine|four|ten] days to answer a text now.",
    (
        "I lent [a friend|someone from my course|an old school friend] [800|1,200|450] for rent. Today I saw "
        "photos of [him|her] skiing."
    ),
    "[Priya|Hanna|Joel], my best friend, is moving to [New Zealand|Canada|Japan] in [August|ten days].",
    "I told [just|exactly] one person my secret and by [Wednesday|lunch] the whole [choir|office|village] knew it.",
    (
        "Is it awful that I'm jealous of my best friend's new [job|boyfriend|house]? I smiled so hard that my "
        "[face|jaw] hurt."
    ),
    "Everyone went to the [lake|cabin|concert] without me. I found out from the [photos|tagged pictures|stories].",
    (
        "My friend asked me to be [his best man|the witness at his wedding] and I can't stand the [bride|woman "
        "he's marrying]."
    ),
    "I wasn't invited to [Carla's|Tom's|Yuki's] wedding. We shared a flat for [six|four] years.",
    (
        "Third date with [a vet|a baker|a bus driver] tomorrow. I haven't felt this nervous since my [driving "
        "test|school play]."
    ),
    (
        "He cancelled [an hour|twenty minutes] before the date. Again. I was already [sitting at the table|on "
        "the tram|wearing the dress]."
    ),
    (
        "The divorce papers came [in the post|by courier] this morning, between [a pizza flyer and the gas "
        "bill|two catalogues]. [Seventeen|Twelve|Nine] years."
    ),
    "My husband has a second phone. I found it in the [spare tyre|toolbox|lining of his gym bag].",
    (
        "I cheated on my [girlfriend|boyfriend|wife] [two years ago|in the spring|on a work trip] and I've "
        "never told anyone."
    ),
    (
        "She's in [Lisbon|Seoul|Montreal] and I'm in [Leeds|Chicago|Graz]. We see each other [four times a "
        "year|every eleven weeks] and the airport part gets worse."
    ),
    "I think I'm in love for the first time. I'm [19|62|35], is that [late|silly]?",
    "Single again at [forty-four|fifty|thirty-eight]. All my plates are [in sets of two|hers].",
    (
        "It was our [tenth|twentieth|fifteenth] anniversary on Saturday and [he|she] forgot. I'd booked [a "
        "table|the same hotel as back then] and everything."
    ),
    (
        "We've been married for [forty|fifty|thirty-five] years today. He still [warms the car for me|leaves me "
        "the crossword|peels my oranges]."
    ),
    (
        "My [boss|manager|supervisor] yelled at me in front of [the customers|the whole kitchen|eight people] "
        "because of a [typo|wrong label|late delivery]."
    ),
    (
        "A colleague presented my [slides|numbers|design] as [his|her] own today. Our director [applauded|said "
        "it was brilliant]."
    ),
    (
        "There's a rumour at work that I'm sleeping with [the owner|somebody in accounts]. I barely [know "
        "him|talk to anyone there]."
    ),
    (
        "There's this man at work who says \"after you\" at every door and then we both stand there. It's been "
        "[two years|eight months] of [doors|standing]."
    ),
    (
        "My colleague [Gudrun|Martin|Beatriz] retires [on Friday|next week] and I'm the one who's supposed to "
        "[write the card|collect the money|give the speech]."
    ),
    "Our new [team lead|head nurse|foreman] is [twenty-six|twenty-four]. I've been here for [nineteen|thirty] years.",
    (
        "The neighbours upstairs have parties, fights and a [drum kit|rowing machine], all [after midnight|at "
        "five in the morning]."
    ),
    (
        "My neighbour [Mr. Ortiz|Mr. Lindqvist|Mr. Bello] hasn't picked up his newspapers since "
        "[Monday|Thursday]. Should I [knock|call somebody]?"
    ),
    "The people next door cut down [our|my] [cherry tree|hedge|lilac] while we were [on holiday|away for the weekend].",
    "My roommate eats my [cheese|leftovers|yoghurt] and puts the empty [box|packaging|tub] back in the fridge.",
    (
        "My flatmate's boyfriend has basically moved in. He's got a [shelf|toothbrush and a shelf|bike in the "
        "hall] and pays [nothing|zero rent]."
    ),
    (
        "My [maths|history|piano] teacher told me I'd never amount to much. I'm [fifty-two|forty|sixty-one] and "
        "I still hear it."
    ),
    (
        "I saw my old [Latin|art|PE] teacher at the [bakery|station|dentist]. He remembered my name after "
        "[thirty|twenty-five] years!"
    ),
    (
        "My doctor didn't look up from [the screen|his keyboard] once. I talked about [the pain|the lump|not "
        "sleeping] to the side of a head."
    ),
    "Doctor says it's [stress|just my age|all in my head]. Third doctor this year.",
    (
        "An old [man on the [bus|number 12 tram] took my hand and said I looked like his late wife|woman on the "
        "[bus|train] took my hand and said I looked like her sister]. I let it happen. Was that strange?"
    ),
    "A complete stranger paid for my [groceries|petrol|train ticket] when my card was declined.",
    (
        "I've been chatting with a guy from a [chess server|gardening forum|knitting group] for [three "
        "years|five years]. He went silent in [March|November] and I don't even know his surname."
    ),
    (
        "Met my online friend in real life [yesterday|on Saturday]. We had [nothing|absolutely nothing] to say "
        "to each other and it lasted [four hours|an entire lunch]."
    ),
    (
        "I got dropped from the [handball|hockey|rowing] team. They put the list up in the [hallway|canteen] "
        "and I read it [twice|four times]."
    ),
    "Our [choir|book club|bowling team] voted on a new leader and I lost by [one vote|two votes].",
    "I look after my mum, who has [Parkinson's|dementia|MS]. My [brothers|two sisters] send [flowers|heart emojis].",
    (
        "Mum has to go into a home. I signed the form [today|this afternoon] and she thinks we're going [on a "
        "trip|to the seaside]."
    ),
    (
        "It's a year today since my [wife died. I still buy [two rolls|her brand of tea]|husband died. I still "
        "buy [two rolls|his newspaper]]."
    ),
    (
        "My dad died on [Sunday|Tuesday night] and all I can think about is who'll [wind the clock|feed his "
        "pigeons|fix my bike]."
    ),
    (
        "I lost my best friend to [cancer|an accident on the A9|leukaemia] at [thirty-one|twenty-six]. His mum "
        "asked me to [clear his flat|come and pick a jacket]."
    ),
    (
        "We had to put [Biscuit|Daisy|Luna] down this morning. [Fourteen|Thirteen|Sixteen] years old. Her "
        "[bowl|lead|blanket] is still by the door."
    ),
    "I had a miscarriage in the [eleventh|ninth] week. Nobody knew I was pregnant, so nobody [knows|asks] now.",
    (
        "My old [violin|swimming|chemistry] teacher passed away. I always meant to [write to her|send her a "
        "postcard|go back and thank her]."
    ),
    (
        "I wasn't there when [my mum|Nan|Dad] died. I'd gone down to [the car park|get a coffee|move the car] "
        "for ten minutes."
    ),
    (
        "I hit a parked car [in 2009|eleven years ago] and drove off. It was an old [Fiat|Polo] with a child "
        "seat in the back. I never told a soul."
    ),
    (
        "When I was [twelve|ten] I let my brother take the blame for the [fire in the shed|broken "
        "greenhouse|stolen money]. He got [sent to boarding school|hit for it]."
    ),
    "Can I tell you something I've never said out loud? I don't [love|like] my [father|own sister|husband any more].",
    (
        "I can't read properly. I'm [thirty-nine|fifty-three|forty-six] and my [wife|daughter|boss] doesn't "
        "know. [I always say I forgot my glasses.|]"
    ),
    (
        "I owe my ex-business partner an apology. It's been [eight|twelve|six] years. How do people even begin "
        "a letter like that?"
    ),
    "My father apologised to me last night, for [everything|the belt|the drinking]. I said \"it's fine\". It isn't.",
    (
        "Should I forgive somebody who isn't sorry? My [aunt|stepfather|ex-wife] spent [my savings|the money "
        "Grandpa left me] and laughs about it."
    ),
    (
        "I bumped into my first [boyfriend|girlfriend|love] after [twenty|thirty|sixteen] years, in the [frozen "
        "food aisle|passport queue|waiting room]."
    ),
    (
        "People stare at the [scar on my face|birthmark on my cheek|brace on my leg]. A [kid|child] on the "
        "train asked about it and the mother [pulled him away|turned red]."
    ),
    (
        "The landlord was friendly on the phone until he heard my [surname|last name]. Then the flat was "
        "[suddenly gone|already taken]."
    ),
    (
        "The security guard followed me through the [whole shop|perfume section] again. I was buying [socks|a "
        "birthday card for my mum]."
    ),
    (
        "I'm in an office with [sixty|forty|ninety] people and I haven't had a real conversation since "
        "[January|last week|the summer party]."
    ),
    (
        "Went to a party, stood by the [bookshelf|crisps|stereo] for [two hours|an hour and a half], went home. "
        "Nobody noticed either part."
    ),
    (
        "[Guess what|You won't believe it], the baby came at noon, my [sister|brother] can't stop crying, and "
        "I'm an [aunt|uncle]! [3.4 kilos|Seven pounds] of pure noise."
    ),
    (
        "My half-brother found me [online|through a DNA test]. He's [forty-seven|fifty-two], lives in "
        "[Oslo|Texas|Perth] and has my [nose|ears|laugh]."
    ),
    "DNA test says my dad isn't my dad. It was a [Christmas|birthday] present from my [wife|kids].",
    (
        "My in-laws speak [Polish|Tamil|Portuguese] at the table, and after [seven|four] years I still only get "
        "the [jokes|food words|swearing]."
    ),
    "My father-in-law offered me a job in his [garage|law firm|hotel] and my wife says I can't possibly say no.",
    'The kids call my ex\'s new wife "[Mummy Jo|Mama Two|Mum]" now.',
    (
        "My stepdaughter asked me to [walk her down the aisle|come to her graduation]. Me, not her "
        "[father|dad]. I had to sit down on the [stairs|kerb]."
    ),
    (
        "My adopted [son wants to look for his|daughter wants to look for her] birth parents at "
        "[eighteen|sixteen]. I always said I'd help. Now my stomach [turns|hurts]."
    ),
    (
        "Being the oldest of [seven|six] means I've changed [more nappies|more beds] than most parents, and I'm "
        "only [twenty|twenty-two]."
    ),
    "My sister is in [prison|rehab] and my mother tells everyone she's [working abroad|in Dubai|on a cruise ship].",
    (
        "My brother [drinks|gambles]. He called me at [four|three] in the morning to say that he's [sold the "
        "car|losing the flat]."
    ),
    (
        "Nobody told me my uncle had died. I read it in the [paper|church bulletin]. The funeral was [last "
        "week|on the third]."
    ),
    (
        "[My aunts|The cousins] were fighting over Grandma's [rings|china|fur coat] before the coffee at the "
        "wake was even cold."
    ),
    (
        "My dad is getting married again, [seven|nine] months after Mum. She's called [Sheila|Renate|Doreen] "
        "and she's really [nice|friendly], which makes it worse."
    ),
    "I'm the only [one|cousin] without kids, so they put me at the children's table. I'm [thirty-six|forty-three].",
    (
        "Mum keeps asking me to move back [home|to the village]. She's [healthy|fit as anything] and "
        "[sixty-four|fifty-nine], she's just lonely."
    ),
    (
        "My [parents|folks] are divorcing after [thirty-eight|forty-one] years and both of them phone me to "
        "complain about the [sofa|dog|solicitor]."
    ),
    (
        "[Nan|Granny] has started giving away her things with [stickers|little name tags] on them. I got the "
        "[toaster|barometer]."
    ),
    (
        "My grandmother taught me to [make dumplings|knit heels|gut fish] over video today. It took [three "
        "hours|all afternoon] and we laughed so much!"
    ),
    (
        "I have to tell my parents I've dropped out of [law school|my engineering degree|uni]. They've paid "
        "[two|three] years of fees."
    ),
    "My niece [Lotte|Amara|Zoe] is six and asked me why I look sad [in photos|at dinner]. I had no answer.",
    (
        "My kid's imaginary friend is called [Gerald|Mister Pants|Otto] and he's apparently [dead|from the "
        "war|very disappointed in me]."
    ),
    "My son has no friends in his class. He eats lunch with the [caretaker|librarian|dinner lady].",
    (
        "Parents' evening was horrible. [Twelve|Ten] minutes about how [quiet|wild|distracted] she is and not "
        "one word about how funny she is."
    ),
    "We found [cigarettes|a vape|vodka in a shampoo bottle] in our daughter's [school bag|hockey bag].",
    (
        "My teenage son told me he [hates|can't stand] me because I wouldn't let him go to a [festival|party] "
        "in [another city|an old quarry]."
    ),
    (
        "My little one starts [school|nursery] tomorrow. [He's|She's] already asleep and I'm standing here "
        "[ironing a tiny collar|labelling pencils]."
    ),
    (
        "Our four-year-old [son|daughter] has been diagnosed with [type 1 diabetes|epilepsy|autism]. We left "
        "with [a folder|three leaflets] and a sticker."
    ),
    (
        "My daughter wants to live with her [father|dad]. She told me in the [car|drive-through], looking "
        "[straight ahead|out of the window]."
    ),
    (
        "I shouted at my [three|four]-year-old because of [some spilled juice|a lost shoe] and [he flinched|she "
        "hid behind the curtain]."
    ),
    "My kids are [31|28] and [26|24] and I still can't sleep until they text that they're home. Is there a cure?",
    "My [twins|boys] graduated today! Both of them! One even [wore a tie|combed his hair].",
    "I'm pregnant and I haven't told anyone except [you and the dog|a cashier|my dentist]. It's [seven|five] weeks.",
    'The test was negative. [Ninth|Twelfth|Sixth] time. My husband just [said "next month"|went out to wash the car].',
    (
        "My friend [Olu|Bettina|Craig] only calls when [he needs a van|the printer breaks|something's wrong]. I "
        "counted: [eleven calls, eleven favours|seven calls, seven favours]."
    ),
    (
        "My friends all have [babies and talk about [sleep schedules|prams]|mortgages and talk about interest "
        "rates]. I've started bringing a book."
    ),
    (
        "My best friend is dating my [little brother|boss|ex-husband]. They told me together, holding hands, in "
        "my own [kitchen|living room]."
    ),
    (
        "I ended a friendship of [twenty|fifteen] years by [text last night and now I keep rereading it|voice "
        "message last night and now I keep listening to it]."
    ),
    (
        "A friend from [school|the army|my first job] wrote to me out of nowhere. We had the worst fight in "
        "[2011|2006] and [he|she] wants to have a coffee."
    ),
    (
        "My friend [Dina|Hugh] laughs at everything I wear. [On Saturday it was my shoes.|Last time it was my "
        "hat.] Everybody thinks it's banter."
    ),
    (
        "I moved to [Rotterdam|Denver|Aberdeen] for work [five|eight] months ago. My only regular contact here "
        "is the [man at the kebab shop|woman at the laundrette]."
    ),
    "Making friends at [forty|fifty-five] feels like dating, just with more [hiking|board games]. How does one do it?",
    "My friend asked me to lie to her [husband|parents] about where she was [on Friday|last weekend].",
    (
        "My buddy [Sam|Dele|Mirko] is in hospital after [a motorbike crash|a fall from a roof|a bad stroke]. "
        "They won't let me in since I'm [not family|only a friend]."
    ),
    "My best friend asked me to be godmother! I've never held a baby for more than [five|two] minutes.",
    "We were [four|five] friends. Now there's a chat without me in it, I saw it on [Kim's|Jonas's] phone.",
    (
        "So there's a girl at the [climbing gym|pool] who always [saves me a locker|laughs at my jokes]. How do "
        "I find out if she likes me?"
    ),
    '[He|She] said "I love you" and I said "[thank you|cool]". How do I [fix|survive] this?',
    "My boyfriend wants to [open our relationship|move in] after [four|five] months. I want to want it.",
    (
        "My girlfriend's parents don't know I exist. We've been together for [two|three] years and I get "
        "introduced as the [flatmate|colleague]."
    ),
    (
        "She's [Muslim|Hindu|very Catholic], I'm [nothing in particular|Jewish], and her grandmother is coming "
        "to [inspect|meet] me on Sunday."
    ),
    (
        "I proposed [on the ferry|at the aquarium|by the canal]. [She said yes!|He said yes!] I dropped the "
        "ring first, it nearly [went into the water|hit a seagull]."
    ),
    (
        "I proposed and she said she needed [time|to think]. That was [nine|twelve] days ago and we've been "
        "very polite about [the dishes|breakfast]."
    ),
    (
        "My wife and I haven't touched each other since [last autumn|before the move]. We're great at "
        "[logistics|school runs], though."
    ),
    (
        "My ex is getting married today. I'm in the garden [digging a hole for no reason|pulling weeds] so I "
        "don't look at my phone."
    ),
    "We broke up but the lease runs until [March|September]. He sleeps [on the sofa|in the study] and hums.",
    "Downloaded a dating app at [68|71]. The first man sent me a photo of his [tractor|boat|knee operation].",
    "I got ghosted after [three months|six dates]. [He|She] still watches all of my stories.",
    "My husband told me he's never really liked my [cooking|laugh|mother's house]. [Twenty-two|Eighteen] years in.",
    (
        "I still write letters to a boy I kissed in [1987|1994] at a [youth hostel|summer camp] in "
        "[Denmark|Wales]. I don't send them."
    ),
    "Everyone asks why a nice [man|woman|person] like me is single. I've run out of [jokes|answers].",
    (
        "My girlfriend got a job [on a research ship|in Singapore|in Brussels]. She asked if I'd come along and "
        "I said I'd [tell her on Sunday|think about it]."
    ),
    "[Valentine's Day|The wedding season] again. I've bought myself [tulips|a steak|a very large cake].",
    (
        "I'm in love with my [best friend's sister|flatmate|dance partner] and [she's marrying|she's just moved "
        "in with] someone called [Keith|Fabian]."
    ),
    (
        "My colleague [cries|has been crying] in the toilets every [morning|day after lunch]. I hear it. I "
        "never know whether to knock."
    ),
    (
        'HR invited me to "a short chat" [tomorrow at nine|on Friday afternoon]. My colleague [Dave|Silke] got '
        "one of those [last week|in May] and now his desk is empty."
    ),
    (
        "At lunch they all switch to [Dutch|Finnish|Korean] as soon as I sit down. I'm the only [foreigner|one "
        "who doesn't speak it]."
    ),
    (
        "They gave the promotion to the guy I [trained|hired]. He asked me afterwards how to [fill in the "
        "form|use the calendar]."
    ),
    'My boss texts me at [eleven at night|six on Sundays] with "[quick one|are you up?|tiny thing]".',
    "My boss thanked me today. Out loud! With my [name|actual first name]! I've been there for [three|seven] years.",
    (
        "Somebody at work [microwaves fish|clips his nails|whistles the same four notes] every single day and "
        "I'm becoming a worse person."
    ),
    "I replied-all with a [joke|rant] about our [client|CEO]. [Two hundred|Four hundred] people got it.",
    "My work friend quit [without a word|overnight]. Her desk has a [cactus|mug] left on it and that's it.",
    (
        "I've got to fire someone tomorrow. He's got [three kids|a new baby] and he brings in [pastries|plums "
        "from his garden]."
    ),
    (
        "I was paid [four hundred|six hundred] a month less than the man beside me, for [nine|five] years. The "
        "spreadsheet was just lying [in the printer|there]."
    ),
    "A customer called me [stupid|useless] today because we'd run out of [oat milk|size 38|printer ink].",
    (
        "My colleague keeps mispronouncing my name. It's been [four years|so long] that I've started to [answer "
        "to it|sign like that]."
    ),
    (
        "I'm a nurse. I lost [a patient|an old lady I liked] on the night shift and then I had to [smile in the "
        "next room|go and hand out breakfast]."
    ),
    (
        'I\'m a teacher, and a [boy|girl] in year [eight|six] wrote an essay titled "Nobody talks at home". I '
        "read it [on the bus|four times]."
    ),
    "A parent accused me of [favouring|ignoring] her kid, in front of [the whole class|all the other parents].",
    (
        "My neighbour's [little boy|daughter] rings our bell every afternoon because there's [nobody home|no "
        "dinner] at theirs."
    ),
    (
        "Our neighbour plays the [trumpet|accordion] badly but with so much [joy|feeling|energy] that I can't "
        "bring myself to complain."
    ),
    (
        "The lady in 3B accused us of stealing her [parcel|doormat|bicycle pump]. It was [under her own "
        "stairs|delivered to the wrong house]."
    ),
    (
        "New neighbours brought us [baklava|plum cake|soup]! In [eleven|fifteen] years in this street nobody's "
        "ever done that."
    ),
    (
        "I called the police on the couple across the hall. I heard [a crash|her scream]. Now [they both|the "
        "two of them] glare at me in the lift."
    ),
    (
        "My housemate hasn't left his room in [five|six] days. I hear him [walking around|coughing] at night. I "
        "leave [toast|soup] outside."
    ),
    "I have to tell my roommate he smells. There, I said it. How on earth do I tell [him|Ben|Piotr]?",
    "My old flatmate left owing me [600|350] and a [bathtub full of paint|lasagne dish].",
    (
        "My piano teacher is [eighty-three|seventy-nine] and falls asleep during my lessons. I just keep "
        "[playing|paying] and tiptoe out."
    ),
    'My professor called my thesis "[brave|ambitious|a start]". What does that mean?',
    (
        "My driving instructor [sighs|screams] at every [roundabout|junction]. I'm [forty-five|twenty-nine], I "
        "feel like a schoolgirl."
    ),
    "The dentist [told me off|laughed] about my teeth while his hands were in my mouth.",
    (
        "The midwife was so kind to me that I cried [the whole way home|all the way down the stairs]. Is it odd "
        "to bring her [chocolates|flowers]?"
    ),
    "The results are in, they said, come in [tomorrow|on Monday] and bring somebody with you. I don't have a somebody.",
    (
        "Someone spat at my [feet|hijab|back] at the [bus stop|market]. In broad daylight. Everybody looked at "
        "their [phones|shoes]."
    ),
    (
        "A taxi driver told me his whole life in [forty|twenty-five] minutes: [war, two wives, a lost "
        "brother|the sea, the shop, the fire]. I can't stop thinking about him."
    ),
    "A woman on the train was crying and I [just looked away|pretended to read]. I wish I'd said something.",
    "I get called \"[sir|ma'am]\" every time I go to the [pool|bank]. I've stopped going.",
    "I use a wheelchair, and people pat me on the [head|shoulder]. Actual pat. Today it was a [waiter|vicar].",
    (
        'They asked where I\'m from. I said [Bradford|Cologne|Ohio]. "No, but really?" [Fourth time this '
        "week.|At my own birthday party!]"
    ),
    "I was the only woman on the [building site|panel|course] and they handed me the [coffee pot|coats].",
    "I told them I'm [autistic|deaf in one ear|dyslexic] and now they all talk to me [very slowly|like I'm five].",
    (
        "Someone in my [guild|gaming group|raid team] turned out to be my [dentist|ex-husband]. We've been "
        "slaying dragons together for a year."
    ),
    (
        "A stranger online has been sending me [nasty|creepy] messages for [weeks|two months]. He knows my "
        "[street|school]."
    ),
    (
        "The moderator of my favourite forum died. [Four hundred|Three hundred] people lit a candle and nobody "
        "knew [her real name|what she looked like]."
    ),
    "I've been left on the bench [all season|for nine games]. Coach says my attitude is [great|exemplary].",
    "We won the [cup|regional final]!! I missed a penalty, and they [carried me|sang my name] anyway.",
    'My [theatre group|improv team] gave my role to a newcomer because she\'s got "[presence|the look]".',
    (
        "The running club runs too fast for me and they all wait at the [corner|traffic lights], smiling. I "
        "hate the smiling."
    ),
    (
        "I've been a scout leader for [twenty-five|thirty] years, and last night they told me that it's time "
        "for [younger people|fresh blood]."
    ),
    "My husband had a stroke in [June|February]. He's here, but he calls me by his [sister's|first wife's] name.",
    (
        "I'm a carer for my [brother|son], who's [disabled|severely disabled]. What happens to him when I'm "
        "gone? I'm [seventy|sixty-six]."
    ),
    (
        "I dreamed that my mum [died|was gone] and woke up relieved for a second. She's been ill for "
        "[nine|eight] years. What kind of person does that make me?"
    ),
    (
        "My dad doesn't recognise me, but he told the nurse that he likes \"[that polite young man|the lady "
        'with the warm hands]".'
    ),
    (
        "Found a voicemail from my late [husband|brother]. It's him asking for [onions|batteries|the number of "
        "the plumber]. I've played it [thirty|forty] times."
    ),
    (
        "I gave away my late wife's [coats|shoes] today. A woman walked past me in one of her [scarves|jackets] "
        "and I nearly called out."
    ),
    (
        "It would have been my son's [eighteenth|thirtieth|tenth] birthday today. We bake the [cake|chocolate "
        "cake] anyway."
    ),
    (
        "My partner died very suddenly [two years ago|last autumn]. People cross the [road|street] so they "
        "don't have to talk to me."
    ),
    'My [parrot|rabbit|old cat] died and my boss said "it\'s just [a pet|an animal], right?"',
    "My ex died. Am I even allowed to grieve? We'd been [divorced|separated] for [ten|six] years.",
    (
        "My regular at the café, an old man called [Walter|Mr. Okafor], died. I still make his [espresso|flat "
        "white] at ten past eight."
    ),
    "Grandad's been gone for a [month|week] and Grandma still sets his [place|slippers out].",
    "I promised my dad on his deathbed that I'd look after [Mum|the farm|his dog]. I can't do it any more.",
    "I sold my father's [watch|accordion|medals] when I was broke. He thinks it's [in the safe|at the repair shop].",
    (
        "I said something cruel to my [mum|son|grandfather] on the phone [yesterday|on Sunday] and hung up. It "
        "was about [Dad|Christmas|money]."
    ),
    (
        "At school I was one of the bullies. I saw [him|the boy] at a [petrol station|reunion] last week and he "
        "was [polite|kind] to me."
    ),
    "I steal. Small things, [lipsticks|pens|sweets]. I'm a [lawyer|grandmother], for heaven's sake.",
    "I've told everyone I have a degree. I left [two|three] exams before the end, in [1999|2004].",
    (
        "I'm ashamed of my parents' [clothes|accent|old car] and ashamed of being ashamed. They're coming to my "
        "[graduation|office party]."
    ),
    "I've been pretending to go to work for [six|three] weeks. I sit in the [library|car by the river].",
    (
        "I don't miss my [brother|father]. Everyone at the funeral waited for me to cry, and I was thinking "
        "about [parking|lunch]."
    ),
    (
        "I forgot my best friend's [fortieth|wedding anniversary dinner]. Completely. She'd kept a seat for me "
        "[all night|until ten]."
    ),
    (
        "My neighbour apologised after [fourteen|nine] years of silence. With a [marrow|bottle of wine] in his "
        "hand. I nearly shut the door."
    ),
    (
        "How do you apologise to a [child|teenager]? I accused my daughter of taking [fifty euros|my earrings] "
        "and then I found them in my coat."
    ),
    "I want to forgive my mother before she dies. The doctors say [weeks|by autumn]. I've no idea how it's done.",
    (
        "[My old bandmates|The girls from the hostel] and I met up after [twenty-five|eighteen] years. We "
        "picked up [mid-sentence|exactly where we'd stopped]."
    ),
    "My school reunion is on [Saturday|the ninth], and I'm the one who was called [Piggy|Ghost|Professor]. Do I go?",
    "I saw my estranged son across the [street|platform]. He's got a beard now and a [pushchair|baby on his chest].",
    "Everybody on the [team|ward|boat] got a nickname except me.",
    (
        "Sunday afternoons are the worst. I hear the families [in the yard|through the wall] and I [iron things "
        "that don't need it|turn the radio up]."
    ),
    "I talk to the [checkout lady|pigeons|speaking clock] more than to my own wife.",
    (
        "The family [holiday|ski trip] is booked, a house for [ten|twelve]. There's no bed for me, \"because "
        "you're [flexible|easy]\"."
    ),
    (
        "My sister [Marit|Elena|Joy] and I sang at our dad's [seventieth|eightieth] and he cried into his "
        "[soup|napkin]. Best day of the year."
    ),
    "My nephew moved in with us for [a month|a few weeks]. That was in [2021|2022].",
    (
        "My uncle says awful things about [immigrants|gay people|my girlfriend] at every [dinner|Sunday roast], "
        "and everyone just passes the potatoes."
    ),
    (
        "I'm adopted and I just met my birth [father for the first time. He|mother for the first time. She] "
        "brought a [teddy bear|doll]. I'm [forty-one|thirty-three]."
    ),
    (
        "Our foster [girl goes back to her|boy goes back to his] family on [Wednesday|the first]. We knew it "
        "would be temporary. I've packed the bag [three|four] times."
    ),
    (
        "My mother is dating and she's happier than I've ever seen her. His name's [Alf|Bruno] and he [breeds "
        "snails|sings sea shanties]."
    ),
    (
        "My twin brother and I had our first birthday apart. I ate [half a cake|exactly half of the cake] and "
        "froze the rest."
    ),
    (
        "Our family WhatsApp has [four|five] thousand messages about [where to put Grandma's sofa|potato salad] "
        "and not one about my [operation|exam]."
    ),
    "My wedding's in [three|five] weeks, and my parents refuse to sit in the same [room|row].",
    (
        "A [dog walker|man with a greyhound] in the park told me I've got a kind face. I'd cried all morning. "
        "It's funny what keeps you going."
    ),
    "My barber of [twenty|sixteen] years has [closed|retired] and I feel like I lost an uncle.",
    (
        "My grown-up daughter's [boyfriend|new man] is [eleven|fourteen] years older than she is and calls me "
        '"[mate|Mum]".'
    ),
)

FOLLOWUPS: tuple[str, ...] = (
    (
        "I finally called [her|him|them] back. We talked for [four|nine|twenty] minutes, mostly about the "
        "[weather|dog|traffic]."
    ),
    "What would you say to [somebody like that|him|her] if you met [at the bakery|on the stairs]?",
    (
        "It's been [three weeks|ten days|two months] and nobody has mentioned it, not even [at dinner|in the "
        "group chat|on the phone]."
    ),
    'I wrote a long message and deleted it. Then I wrote "[hope you\'re well|okay|sure]" and sent that.',
    "My [aunt|sister|mother] says I'm too sensitive. Am I?",
    "They sent a [thumbs up|single question mark|voice message of six minutes]. What am I supposed to do with that?",
    "I keep thinking of the [look on her face|way he closed the door|silence afterwards].",
    "Should I wait until [Sunday|after the holidays|the weekend] or do it tonight?",
    "[He|She] looked at me as if I were a [stranger|piece of furniture|parking ticket].",
    "I haven't eaten since [yesterday|breakfast], apart from [half a banana|crackers|a handful of nuts].",
    "To be honest, I was a bit [mean|short|childish] as well. I slammed the [door|laptop|fridge].",
    "The others all took [his|her|their] side, of course. Even [Mona|Uncle Theo|Gareth]!",
    "We used to be so close. We had a [secret knock|song|bench by the river] and everything.",
    "I saw [him|her] again today, by the [lifts|bike racks|post office]. We both nodded.",
    "Do you think people can change, I mean really change, after [forty|fifty]?",
    "I've got until [Thursday|noon|the end of the month] to decide.",
    "[Mum|My husband|My flatmate] thinks I should let it go. I'm not good at letting [things|anything] go.",
    "Then out of nowhere [she|he] hugged me. I just stood there with my [shopping bags|wet umbrella].",
    "How do you know when it's time to [give up on someone|stop trying|walk away]?",
    "I slept [three|two|four] hours. My head was rehearsing the whole [conversation|speech] all night.",
    "It's a little better today. I [washed my hair|opened the curtains|went for a walk with Nadia].",
    (
        "It's worse today. I [heard our song on the radio|smelled that aftershave|found a photo behind the "
        "fridge] and that was that."
    ),
    "Would you have told them? I mean the whole [truth|story]?",
    (
        "I'm writing this from the [bathroom|car|stairwell], by the way. They all think I'm on the phone to "
        "[work|the bank]."
    ),
    "They asked me to bring a [salad|cake] and act normal.",
    "And the worst thing is that I laughed. I actually laughed, in front of [everyone|his mother].",
    "I don't want advice from my [sisters|colleagues|parents], they've all got perfect lives. On the surface, anyway.",
    "Last night I found an old [photo|drawing|video] of us, from [2008|Brighton|the summer with the boat].",
    "So, what's the next thing I should say to [them|her|him]?",
    "I never told that to anyone, not even my [wife|therapist|best friend].",
    "Maybe I expect too much from [people|family|friends]. Do you?",
    (
        "[He|She] wants to meet at the [station café|duck pond|old pizza place] at [five|half past six]. I've "
        "changed my shirt twice."
    ),
    "Well, it's done. I said it in [one breath|a shaky voice], and then it was [awfully|very] quiet.",
    "It turns out that they knew all along. Since [spring|the wedding|last year]!",
    "I got a letter back! [Two pages|Four lines], in handwriting I'd know anywhere.",
    "Money's part of it as well, about [two thousand|nine hundred]. Nobody says it out loud.",
    "What if I [regret it|misjudged them|make everything worse]?",
    "My [kids|boys|daughters] have noticed something. The little one drew me with [a rain cloud|no mouth].",
    "I'm [forty-eight|twenty-three|fifty-seven], shouldn't I be past this sort of thing by now?",
    "You're the first [one|person] who's asked about my side of it.",
    (
        "I'd rather talk about something nice for a minute. My [neighbour's cat|tomato plant|niece] did "
        "something funny today."
    ),
    "Could be I'm just tired. It's been a long [winter|week|year].",
    "[Everyone|Half the street] has an opinion now, including the [postman|hairdresser].",
    "I'm not angry any more, I'm just [empty|tired|done].",
    "I'm so angry that I cleaned the [oven|whole garage|windows] at midnight.",
    "They offered to [pay half|come over on Saturday|talk it through]. I said I'd think about it.",
    "I keep checking my phone. [Forty|Thirty] times since lunch, it counts them for you.",
    "Nothing from [him|her|them] yet. Only an ad for [mattresses|running shoes].",
    'You know what she said? "[Well, you never asked.|That\'s just how I am.|I forgot you were there.]"',
    "I might go there in person. It's [two hours|forty minutes] by [train|bus] and I've got the day off.",
    "I've made a list. [Five|Six] things I want to say and [one|two] I'd better not.",
    "Deep down I [already|probably] know the answer[, I think|]. I just don't like it much.",
    "My [brother|cousin] came by with [chips|beer] and we didn't talk about it at all. It was perfect.",
    "How long does it usually take until it stops [hurting|going round in my head]?",
    "Everybody keeps telling me how [strong|brave] I am. I wish they'd [bring a casserole|just sit down] instead.",
    'I said sorry. [He|She] said "what for?" and kept on [peeling potatoes|reading].',
    "Some good news for once: we're going to have [lunch|breakfast] together on [Saturday|the 14th], all of us.",
    (
        "Oh, and I found out why. It was about [a parking space|the wedding photos|some money], back in "
        "[2015|the spring|2019]."
    ),
    "Anyway. It's [raining|snowing|hot] here and I've burnt the [rice|toast]. How was your day?",
    "Do I owe them an explanation? I've already given [two|three].",
    "I've still got [his key|her jumper|their casserole dish]. Do I post it or take it round?",
    (
        "I talked to a [counsellor|priest|lady at the helpline] on [Monday|Tuesday]. [Forty|Fifty] minutes. I "
        "mostly cried."
    ),
    "I don't think [she|he] meant it badly. But it landed badly, you know?",
    "It's my turn to host on [Friday|Sunday] and I don't even want to [cook|see anyone].",
    "The funny part is that I miss the [arguing|bad jokes|snoring].",
    "[Last night I|This morning I] sat down and wrote out the whole story. It came to [eleven|three] pages.",
    "Would it be weird to send [flowers|a postcard|soup]?",
    "I'll have to see [them|him|her] every [day|Wednesday] from now on. There's only one [canteen|staircase].",
)

KINDNESSES: tuple[str, ...] = (
    "I glued the leg of your [chair|stool|bench] back on. Give it until [tomorrow|tonight] before you sit on it.",
    "Saved you a seat, [third row, right by the aisle|next to the window|far from the speakers]. My coat's on it.",
    (
        "You asked about the [lentil soup|plum cake|flatbread] the other day, so I wrote the recipe down. It's "
        "on [your desk|the fridge]."
    ),
    "I waited for you at the [bus stop|gate|corner] so you wouldn't have to walk up in the dark alone.",
    (
        "Since you're [a student|next door|the first one who asked nicely], I'll let you have the "
        "[bike|lamp|desk] for [forty|sixty] instead."
    ),
    "I'll be straight with you: the [left brake|second gear|zip] sticks a bit. I didn't want you to find out at home.",
    "Watered your [ferns|tomatoes|plants] while you were away. The [big one|one by the door] has a new leaf.",
    (
        "I brought spare batteries, I figured your [torch|head lamp|radio] might be running low. [Four AA "
        "ones|Six of the small ones]."
    ),
    (
        "Your parcel came while you were at [work|the gym], so I signed for it. It's in our [hall|kitchen], "
        "come over whenever."
    ),
    "I've finished the [slides|table|minutes] you were worried about, you can go home on time [today|for once].",
    "Made too much [curry|stew|rice pudding] on purpose. There's a bowl with your name on it in the [oven|fridge].",
    "I took your night shift on [Saturday|the 24th]. Go and see your [sister's play|parents].",
    "Your bike had a flat, so I patched it while the [kettle boiled|laundry was running].",
    "You left your [scarf|umbrella|glasses] at [our place|the meeting]. I'll drop it off on my way [to the pool|home].",
    "I put in a good word for you with [the landlady|Ms. Adeyemi|the head chef]. She sounded [interested|keen].",
    "I dug your car out of the snow this morning, I was [out there anyway|awake at five as usual].",
    "Here, take my [gloves, I've got pockets. Your hands are|woolly hat, I've got a hood. Your ears are] blue.",
    "I fixed the dripping tap in your [bathroom|kitchen], it was only a [washer|rubber ring].",
    (
        "Nobody else was going to say it, so here goes: there's [spinach|lipstick] on your [teeth|front teeth] "
        "and the interview's in [five|ten] minutes."
    ),
    "I printed your boarding pass and your [hotel address|train times], just in case your phone dies.",
    (
        "I kept the last [poppy seed roll|almond croissant|slice of quiche] for you. It wasn't easy, "
        "[Tobias|Ruth] was circling."
    ),
    "I translated that letter from the [tax office|clinic|embassy] for you. Page two is the part that matters.",
    (
        "Your dog can stay with us from [Friday to Monday|the third to the ninth]. We've bought him a "
        "[blanket|bowl] already."
    ),
    "Picked up your [prescription|cough syrup] since the pharmacy's right by my [stop|office].",
    "I told [the boss|Henrik|the client] that the mistake was mine, because it was. You're in the clear.",
    "I sharpened your [kitchen knives|garden shears|axe], careful, they really cut now.",
    "You can have my [parking spot|locker|garage] this week, I'm on the [train|bike] anyway.",
    "I've marked the [good blackberry spots|springs|dry camp sites] on your map with a [red|green] pencil.",
    "Pitched your tent while you were [stuck in traffic|cooking], the ground's flatter over here by the [birch|wall].",
    "I charged your [power bank|camera] in the [van|warden's hut] overnight. It's full.",
    (
        "Let me explain the [ticket machine|heating|coffee maker] quickly: press the [blue|left] button twice, "
        "then hold it. That's the trick."
    ),
    (
        "I threw in the [helmet for free, I won't need it without the scooter|case for free, I won't need it "
        "without the guitar]."
    ),
    "I carried your [boxes|suitcase|washing powder] up to the [fourth|fifth] floor, since the lift's out.",
    "I've held the [sofa|piano|cot] for you since [Monday|last week], even though [two|three] others offered more.",
    "I cleaned the [pram|oven|grill] before you came to fetch it. It even smells of [lemon|soap].",
    (
        "You seemed low on [Tuesday|the phone], so I baked you [a banana bread|oat biscuits]. [No nuts|No "
        "eggs], I remembered."
    ),
    "I taught myself how to [fold dumplings|tie the ropes|play the bass line] so you wouldn't have to do it alone.",
    (
        "I sewed the button back on your [coat|blue shirt]. The thread's a shade too dark, [but it'll "
        "hold|sorry about that]."
    ),
    "I took notes for you in [Thursday's lecture|the safety training]. [Six|Nine] pages, with drawings.",
    (
        "I've asked my [uncle|brother-in-law], the [plumber, to look at your boiler|electrician, to look at "
        "your fuse box]. He'll come at [eight|four] and won't charge you."
    ),
    "I fed your [cats|fish|hens] twice a day and gave them your [love|best].",
    "Someone had left your [window|garage door|car boot] open last night, so I [closed it|went over and shut it].",
    (
        "I lent your [son my old [calculator|trumpet]. He|niece my old [telescope|violin]. She] can keep it as "
        "long as it's used."
    ),
    "I moved my [piano lesson|drilling] to the [afternoon|evening] so you can sleep after your night shift.",
    "I got you a ticket too! Row [seven|F], and no, you don't owe me [anything|a penny].",
    "Your [lasagne|casserole] dish is washed and back on your shelf, and I put [a few figs|some cherries] in it.",
    "I read your [story|application|poem] twice and wrote my comments in pencil. The [ending|second page] got me.",
    (
        "Found your [ring|key|earring] under the [washing machine|rug in the hall]! It's in an envelope in your "
        "letter box."
    ),
    "I brought you a coffee, [black with one sugar|oat milk, no foam], the way you take it.",
    "I'll pick you up from the hospital at [two|eleven]. I've already put a [pillow|blanket] in the car.",
    "I put a [night light|second rail] on the stairs, I know you [don't see well|hold on tight] there in the evenings.",
    "I've kept quiet about what you told me [in the tent|at the party], and I'll go on keeping quiet.",
    (
        "Your phone bill looked wrong, so I [called them|stayed on hold for an hour]. They'll refund you "
        "[eighteen|thirty-two] euros."
    ),
    "I swept your side of the [stairs|pavement] too while I was at it.",
    "I left a [jar of honey|bag of apples|dozen eggs] on your doorstep, from my [parents' farm|allotment].",
    "I drove back and got your [passport|inhaler], you'd left it on the [breakfast table|hotel bed]. Here you go.",
    "You were right about the [rent|contract], and I told everyone at the meeting that it was your idea.",
    (
        "I made you a copy of the [key|house key] so you can come in and [use the washing machine|get warm] "
        "whenever you like."
    ),
    (
        "I measured it for you: the wardrobe's [182|176] cm high and [58|61] deep. I [even checked the "
        "feet|took photos of the back as well]."
    ),
    "I could've told you it's perfect, but the [screen|sole] has a crack. Take [fifteen|twenty] off the price.",
    "I stayed late and reset your [password|login], you can use the one I [texted you|wrote on the yellow note].",
    "I'm giving you my [thick blanket|down jacket|sleeping bag], you've looked cold on every single trip.",
    "I've cooked the [fish|pasta] without [garlic|butter] since you said it doesn't agree with you.",
    "We set a place for you on [Christmas Eve|Sunday], so you don't sit at home by yourself.",
    "I practised the [song|speech] with your [daughter|boy] while you were at the doctor's. It's sounding lovely.",
    "I noticed that your [back light|indicator] was out, so I swapped the bulb. [Took two minutes.|Had one left over.]",
    "Got up at [four|five] to queue, and yes, I got you [a day pass|the signed copy] too!",
    "I recorded the [final|match|last episode] for you and I won't say a word about how it ends.",
    "I put your [post|letters] in a neat pile, the [urgent ones|yellow letters] on top.",
    "I built the [shelf|cot] from the box that's been standing in your hall since [April|the move]. Surprise!",
    (
        "You looked stuck, so here's how I do the [tax return|knots|shift plan]: I've drawn you every step on "
        "[one sheet|four cards]."
    ),
    (
        "I've crossed the village and asked at every [house|farm], and your [tortoise|cat] is safe, she's at "
        "the [miller's|baker's]!"
    ),
    "Put my name down as your emergency contact, I'm [four|two] doors away and I'm a light sleeper.",
    "I talked to the neighbours downstairs about the [noise|smoke], so you don't have to. They'll stop at [ten|nine].",
    "I made you a playlist for the drive, [five|seven] hours, no [saxophone|ballads], as promised.",
    "I've returned your library books with mine, they were due [today|yesterday]. Paid the [two|three] euros as well.",
    "I knitted you [socks|mittens], they came out slightly different sizes, but they're [warm|wool].",
    (
        "You can pay me [next month|in three parts], I know moving is expensive. Take the [fridge|mattress] "
        "with you today."
    ),
    "I told the truth about the [dent|scratch] to your insurance, as a witness. They've got my [statement|number] now.",
    "I kept your spot in the queue, you're right after the man in the [green|straw] hat.",
    (
        "Your [shift|talk] is at nine and the trams are on strike, so I'll be outside your door with the car at "
        "[eight|half past eight]."
    ),
    "I hung up your laundry when it [stopped|beeped], so it wouldn't get musty. The [jumper|wool one] is drying flat.",
    "I lit the stove in your [cabin|hut] an hour ago. It'll be warm when you get back from the [lake|hike].",
    "I cut your [hedge|grass] along with mine, it was just [three|ten] more metres.",
    "I've shown the new [intern|flatmate] everything, so you've got your whole [morning|day] back.",
    "I learned your language a bit for when your [parents|grandparents] visit. [Forty|Sixty] words, so far.",
    (
        "I scanned all the old [photos|slides] your [mum|aunt] lent us, they're on this stick. [Three "
        "hundred|Two hundred and six], in order."
    ),
    (
        "I put up a [mosquito net|fly screen] over your bunk since the [midges|mosquitoes] were eating you "
        "alive last night."
    ),
)
