"""Situations of daily life outside the detailed scenes."""

from __future__ import annotations

OPENINGS: tuple[str, ...] = (
    (
        "I'm a nurse on a [stroke|cancer|children's] ward and last night I gave a patient the wrong dose. He's "
        "fine. I'm not."
    ),
    (
        "Did my [third|fifth|ninth] night shift in a row and just put the [milk|cereal|remote] in the oven. Is "
        "this my life now?"
    ),
    (
        "I drive the number [12|40|63] bus, and this morning a boy ran out in front of me. I braked in time. My "
        "hands still shake."
    ),
    (
        "The head chef threw a pan at the wall [on Friday|during lunch service|last night], and everyone just "
        "went on chopping."
    ),
    (
        "I've taught [maths|history|French] for [nineteen|twenty-two|thirty] years and this class is the first "
        "that makes me dread Mondays."
    ),
    (
        "We lost [half|a third|most] of the [wheat|barley|apples] to the hail on [Sunday|Tuesday]. Four minutes, "
        "that's all it took."
    ),
    (
        "I left the army in [March|June|October]. Eight years of being told when to eat, and now I stand in the "
        "supermarket and can't choose a [loaf|jam|shampoo]."
    ),
    (
        "A customer spat at me over a [two euro|three pound|five dollar] coupon today. I said have a nice day. "
        "Why did I say that?"
    ),
    "[2,140|3,812|1,977] unread mails. I went on holiday for [one week|ten days|two weeks].",
    "The app deactivated my [courier|driver|delivery] account and all I can talk to is a chatbot.",
    "First day at my first real job [tomorrow|on Monday]! I've ironed the same shirt [twice|three times].",
    (
        "They called [forty|sixty|a hundred] of us into the canteen and read the names from a list. Mine was the "
        "[second|last|ninth]."
    ),
    (
        "I retire in [six weeks|a month|eleven days] and everybody keeps congratulating me. Nobody asks whether "
        "I want to go."
    ),
    "My boss copies the [director|whole team|personnel office] on every single mail to me. I feel like I'm on trial.",
    (
        "I deleted the [customer list|price table|booking calendar] this afternoon. The whole thing. There's no "
        "backup and nobody knows yet."
    ),
    (
        "I sit in the car park for [twenty minutes|half an hour] every morning before I can make myself walk "
        "into the office."
    ),
    "I got passed over again. The job went to [Kevin|Lars|Bianca], who I trained [last spring|two years ago].",
    'I work in a call centre and I\'ve started to say "thank you for holding" to my [own kids|cat|mother].',
    (
        "I'm a [paramedic|firefighter] and I can't stop thinking about one house on [Mill Lane|Harbour "
        "Street|Station Road]."
    ),
    "Someone at work keeps stealing my [yoghurt|lunch|good pens], and I know it's small, but it's ruining my week.",
    (
        "I'm a hairdresser with [eczema|a contact allergy] on both hands. The doctor says change jobs. I'm "
        "[thirty-four|forty-one|twenty-eight]."
    ),
    'My probation ends on [Friday|the 15th|Thursday] and my manager has just booked a "quick chat" for that morning.',
    (
        "I was offered [more pay|a promotion|my own team] in [Leeds|Hamburg|Lyon] and I have until "
        "[noon|Friday|tomorrow] to answer."
    ),
    (
        "I clean offices at [four|five] in the morning. Somebody left me a [card|box of chocolates|thank you "
        "note] today and I cried by the copier."
    ),
    (
        "I've sent [eighty|a hundred and ten|sixty-four] applications since [May|January]. Two replies, and one "
        "was for somebody called [Martin|Rosa]."
    ),
    (
        "I'm a mechanic and I think I forgot to tighten the wheel nuts on a [blue Polo|grey van|taxi]. The owner "
        "isn't picking up."
    ),
    (
        "The factory is closing. My [father|grandfather|uncle] worked there, I work there, and my [son|daughter] "
        "was meant to start in [autumn|August]."
    ),
    "Nobody at my new job has eaten lunch with me in [three weeks|a month]. I pretend to make phone calls.",
    (
        'I said "love you, bye" to [the head of finance|our biggest client|the chairman] on the phone. Please '
        "tell me it'll be forgotten."
    ),
    "I'm a vet. People think it's puppies. I put down [six|four|seven] animals on [Saturday|Thursday].",
    (
        "They want us back in the office [four|five] days a week. I moved [two hours|ninety miles] away because "
        "they said remote was forever."
    ),
    "I broke a [4,000|7,500|12,000] euro machine in my second week. It made a noise like a dying goose.",
    (
        "I have to sack someone [tomorrow|on Wednesday] for the first time. He's [fifty-eight|sixty-one] and he "
        "brings me [tomatoes|eggs] from his garden."
    ),
    "I pick parcels in a warehouse and a screen tells me I'm [eleven|eight|fourteen] seconds too slow.",
    "My bakery made a profit this month. [Forty|Sixty-two|Ninety] euros! The first time since I opened!",
    (
        "I think I'm burned out. I read one line of a report for [an hour|forty minutes] today and couldn't tell "
        "you what it says."
    ),
    (
        "I saw my supervisor change the numbers on a [safety|fire|water] report [last week|on Tuesday]. If I say "
        "something, I'm done there."
    ),
    (
        "I'm the only woman on a crew of [nine|fourteen|eleven] roofers and today somebody hung a [pink "
        "apron|doll] on my locker."
    ),
    "I found out that the new [guy|hire|intern] earns [400|600|250] a month more than me. I do his rota.",
    (
        "I'm a pharmacist and I got yelled at for [an hour|most of the morning] because we're out of [insulin "
        "pens|antibiotics|inhalers]."
    ),
    "I failed anatomy. [Second|Third] time. One more and they throw me out.",
    "My thesis is due in [nine|five|twelve] days and I have a title, a table of contents and a headache.",
    (
        "My diploma arrived in the post today. In a tube. I opened it alone in the [kitchen|hallway] and then I "
        "made [toast|soup]."
    ),
    "I'm [fifty-two|forty-seven|sixty] and I sit my school leaving exam in [English|maths|biology] next week.",
    "I got into [medical school|art college|the conservatory]! From the waiting list! [Eleven|Six] days before term!",
    "I froze in my [history|biology|final] oral exam. The professor asked me my own name and I needed to think.",
    (
        "I chose [law|engineering|accounting] because I was good at it. Turns out I can be good at something and "
        "hate every hour."
    ),
    (
        "My supervisor hasn't answered a mail since [February|April|before Easter]. I don't know if I even still "
        "have a supervisor."
    ),
    (
        "I handed in an essay that a program wrote for me and got the best mark of the year. Now they want me to "
        "[present it|read it aloud]."
    ),
    "Everyone in my dorm is out dancing and I'm [microwaving rice|folding socks|watching a documentary about eels].",
    "My scholarship ends in [July|September] and I've got [two|three] semesters to go.",
    "I'm in year [nine|ten] and I eat lunch in the [library|toilet|music room] because of three girls in my class.",
    "I got caught with notes in my sleeve in the [chemistry|statistics|Latin] exam. Hearing's on [Monday|the 4th].",
    (
        "I can't read properly. I'm [thirty-eight|forty-four|twenty-nine], and I've never typed that to anyone. "
        "I use the voice thing."
    ),
    "My [son|daughter] brought home a report card full of fives and a drawing of me as a [dragon|volcano].",
    "I want to leave banking and become a [carpenter|gardener|midwife]. I'm [thirty-six|forty-three]. Say something.",
    "I passed my driving test on the [fifth|sixth|seventh] try. The examiner shook my hand for a long time.",
    "Do I take the gap year or start [physics|nursing|teacher training] in the autumn? The form closes at midnight.",
    'The exam board lost my paper. Lost it. They suggest that I "[sit again in June|take an average grade]".',
    (
        "I started an evening class in [Italian|welding|bookkeeping] and I'm the worst there by a mile. I love "
        "it, weirdly."
    ),
    (
        "I owe [11,000|17,500|23,000] on three cards and I've been hiding the letters in the [piano "
        "stool|freezer|laundry basket]."
    ),
    "The heating bill came. [1,260|890|1,740] euros. I've read it [five|four] times, as if it might change.",
    "I've got [forty|nineteen|twenty-six] euros until the first and the cat needs [food|litter|tablets].",
    "I bet my whole [month's pay|bonus|tax refund] on a football match. I was winning until the [88th|91st] minute.",
    (
        "The tax office wants [3,400|5,100|2,750] from me for [2021|2019|2022]. I thought I'd paid it. I have no "
        "idea how any of this works."
    ),
    "I looked up what my pension will be. It's [612|540|701] a month. I've worked since I was [sixteen|seventeen].",
    (
        'A nice [man|woman|young man] from "the bank" talked me through moving my savings to a safe account. It '
        "wasn't the bank."
    ),
    (
        "I won [9,000|14,000|20,000] in the lottery and I haven't told a soul. I keep the ticket in a "
        "[teapot|boot|cookbook]."
    ),
    "The rent's going up by [180|240|310] from [March|August|November]. Where does anyone live these days?",
    (
        "My card got declined at the till with [eleven people|the whole queue|my neighbour] behind me. It was "
        "for [nappies|bread and eggs|a cucumber]."
    ),
    "I lent my [cousin|old flatmate|colleague] [2,000|1,500|800] and now I see photos of [a jet ski|a hot tub|Bali].",
    "I inherited my [aunt|godfather|great-uncle]'s house and, as it turns out, [all|most] of the debts as well.",
    (
        "I made the last payment on my student loan today. [Seventeen|Fourteen|Twenty] years. It felt like "
        "[nothing|a sneeze]."
    ),
    (
        "I put everything in a coin that my [barber|gym friend|dentist] recommended. It's worth [4|9|12] percent "
        "of what it was."
    ),
    (
        "The bailiff comes on [Tuesday|Thursday|the 9th]. What can they even take? I've got a sofa and a [bass "
        "guitar|fish tank|sewing machine]."
    ),
    "I've been to the food bank for the first time. The volunteer was my old [teacher|neighbour|boss].",
    (
        "I buy things at night. [Lamps|Shoes|Tents]. I don't unpack them. There are [twenty|thirty-one] boxes in "
        "the hall."
    ),
    (
        "We can either fix the [roof|car|boiler] or have [a holiday|Christmas|the kid's teeth done]. Not both. "
        "How do people decide that?"
    ),
    (
        "They found a shadow on my [lung|liver|left kidney]. The scan's on [Friday|the 21st|Monday] and the word "
        'they used was "probably".'
    ),
    (
        "I've got MS. There. I got the letter [this morning|yesterday|on Tuesday] and you're the first one I'm "
        "saying it to."
    ),
    (
        "[Type one|Type two] diabetes, at [twenty-three|thirty-one|fifty-five]. I have an orange leaflet and a "
        "bag of needles."
    ),
    (
        "New hip on [Wednesday|Thursday]! I'm [seventy-one|sixty-eight|seventy-six] and I'm scared of the "
        "anaesthetic, not of the saw."
    ),
    (
        "My back went while I was putting on a [sock|boot]. I've been on the [kitchen|bathroom|bedroom] floor "
        "for an hour now, typing with one hand."
    ),
    "It's been [two|three|four] years of pain, and every doctor sends me to another doctor.",
    (
        "I came off my bike on [wet leaves|the tram rails|black ice] and broke my [collarbone|wrist|jaw]. I "
        "can't even open a jar."
    ),
    (
        "I've used a wheelchair since [last summer|the accident|spring], and today the lift at [the "
        "library|Central station|the town hall] was out again. Fourth time."
    ),
    "Two lines. TWO. I've done [three|four|five] tests, and I'm sitting on the edge of the bath with my coat on.",
    (
        "Our [third|fourth|last] round of IVF didn't take. The nurse called while I was [in a queue at the post "
        "office|on the tram|peeling carrots]."
    ),
    "I lost the baby at [eleven|nine|fourteen] weeks. The app still tells me what size of fruit it is.",
    (
        "I had a hot flush in the middle of [a board meeting|a funeral|choir practice] and took my jumper off "
        "with everyone looking."
    ),
    "I'm losing the sight in my [left|right] eye. I paint. That's all I've ever done.",
    (
        "A front tooth fell out in a [baguette|caramel|apple]. I've got [a wedding|an interview|passport photos] "
        "on [Saturday|Friday]."
    ),
    "I've lost [thirty|twenty-two|forty] kilos and strangers are nice to me now. It makes me furious.",
    "I gained [fifteen|ten|eighteen] kilos from the tablets that keep me sane. Great trade.",
    (
        "Turns out I'm allergic to [hazelnuts|wasps|latex]. I found out in [an ambulance|a tent|the back row of "
        "a cinema]."
    ),
    (
        "The doctor says no more [salt, no more wine, no more cheese|coffee, no wine and no fried food]. So "
        "what's left, [celery|water]?"
    ),
    "I've had ringing in my ears since [a concert in May|the flu|that firework]. It's an E flat. It never stops.",
    (
        "I fainted on the [train|escalator|ferry] this morning and woke up with my head on somebody's "
        "[shopping|violin case|gym bag]."
    ),
    "My migraines are back. I'm typing this with [sunglasses on|one eye shut] in a dark [bedroom|cupboard|bathroom].",
    "I found a lump in the shower [on Sunday|this morning|two weeks ago]. I haven't called anybody.",
    "The biopsy was clear!! [Sixteen|Nine|Twelve] days of waiting, and it's nothing, it's just a stupid gland.",
    (
        "I've had long covid since [2021|2022]. Today I walked to the [letterbox|bakery|bus stop] and back. That "
        "was the day."
    ),
    "I'm [nineteen|twenty-two|twenty-six] and my hair's coming out in handfuls. I wear a [beanie|cap] in lectures.",
    "They want to amputate [two toes|my ring finger|the tip of my thumb]. It's silly to grieve for that, isn't it?",
    "My psoriasis has reached my face. I had to smile at [sixty|two hundred] customers today.",
    "I wet the bed. I'm [forty|thirty-three|forty-six]. I can't believe I'm writing that down.",
    (
        "I need a hearing aid at [thirty-nine|forty-two|thirty-five]. I've been nodding at people for about "
        "[two|three] years."
    ),
    "My new prosthesis squeaks. I walked into [church|the exam hall|the museum] and the whole place turned round.",
    (
        "I've been awake since [three|half past two|one]. The [fridge|clock|street lamp] hums. I know the "
        "ceiling by heart."
    ),
    (
        "I keep having the same dream: I'm in a [supermarket|swimming pool|theatre] and I've forgotten a "
        "[baby|suitcase|language]."
    ),
    (
        "It's dark when I leave and dark when I come home. I haven't seen my own [garden|balcony|street] by "
        "daylight since [Halloween|early November]."
    ),
    "Every [February|November|January] I turn into a stone. It's started again, I can feel it in my legs.",
    "Everybody's happy because the sun is out. I closed the [curtains|shutters|blinds].",
    "I had a panic attack in the [frozen food aisle|lift|middle lane of the motorway]. I thought it was my heart.",
    "I feel nothing. Not sad. Just like a [radio between stations|room after the removal men|plate].",
    "I cried because the [toaster|printer|zip on my coat] jammed. I don't think it was about that.",
    "I'm so ashamed of what I did at the [summer party|wedding|reunion] that I've changed my route to the shops.",
    (
        "I haven't spoken out loud since [Thursday|Friday|the day before yesterday]. I noticed when the "
        "[postman|plumber] rang and my voice cracked."
    ),
    "I talk to the weather lady. She's called [Ingrid|Denise|Paula] and she doesn't know, obviously.",
    "I don't open my curtains or my post. It's been [three|five|six] weeks, maybe.",
    "I was in a really good mood all [day|weekend|morning] and I don't trust it.",
    "I scream in the car. Windows up, car wash on. It helps for about [ten|twenty] minutes.",
    (
        "[Ninety|Sixty|A hundred and four] days without a drink. There's a bottle of [gin|red|plum brandy] at "
        "the back of the pantry, and I know exactly how full it is."
    ),
    "I smoked on the balcony again. [Eight months|A year and a bit|Eleven weeks] for nothing.",
    (
        "My screen time was [nine|eight|eleven] hours yesterday. Most of it was strangers [cleaning "
        "carpets|opening parcels|arguing about bread]."
    ),
    "I pull out my eyelashes when I read. I have [hardly any|four] left on the left side.",
    "I can't leave without checking the stove. Today I went back [six|seven|nine] times and missed my train.",
    (
        "I take [two|three|four] of the sleeping pills now instead of one. The pack says four weeks. It's been "
        "[two years|fourteen months]."
    ),
    "I went [a whole week|nine days|a month] without biting my nails! My thumbs look like a hand model's, almost.",
    "I drink [seven|eight|nine] energy drinks a day and my heart does little [somersaults|drum rolls].",
    "I play a game about [a farm|tanks|sweets] and I've spent [1,900|2,600|740] on it. My real plants are dead.",
    "I'm always late. I was late to my own [birthday|graduation|farewell do]. People laugh, but I'm sick of it.",
    "The neighbours upstairs got a [drum kit|treadmill|parrot]. It begins at [six|half past five] in the morning.",
    (
        "There's black mould behind my [bed|wardrobe|daughter's cot] and the landlord says I should \"[breathe "
        'less|air more|buy a candle]".'
    ),
    (
        "Water's dripping through the ceiling onto my [keyboard|bed|record collection]. I've put out every "
        "[pot|bowl] I own."
    ),
    "The eviction letter says the [thirtieth|fifteenth]. I've lived here for [twenty-six|thirteen|nineteen] years.",
    (
        "I'm sleeping in my [car|brother's old Volvo|van] in the [swimming pool|garden centre|gym] car park. "
        "It's temporary. I've said temporary since [July|May]."
    ),
    (
        "We got the keys! [Fifty-four|Sixty|Thirty-eight] square metres, and the bath is [green|avocado|pink], "
        "and it's ours!"
    ),
    "Mice. In the [cutlery drawer|piano|oven]. I saw one look at me.",
    "The landlord let himself in while I was in the [shower|bath]. He says he has the right. Does he?",
    (
        "I moved to [a village|an island|a valley] with [eighty|two hundred|forty] people for the silence. The "
        "silence is awful."
    ),
    "They're building [a car wash|a nine-storey block|a chicken farm] where my view used to be.",
    (
        "I locked myself out in my [pyjamas|towel|slippers]. The locksmith wants [280|350|190]. My phone's at "
        "[9|6|12] percent."
    ),
    (
        "My flatmate does not wash. Not [himself|herself], not a plate, not one [towel|pan] since [Easter|the "
        "start of term]."
    ),
    (
        "I have to get my whole life into [fourteen|ten|twenty] boxes by [Sunday|Saturday night]. I've packed "
        "[one drawer|a lamp and some spoons]."
    ),
    (
        "There was a fire in our building. We're all out, and I'm standing in the street with [a hamster cage|a "
        "rice cooker|my neighbour's accordion]."
    ),
    (
        "The house I grew up in is being sold. There's a pencil line on the [pantry|kitchen|bathroom] door with "
        "my name at [six|seven]."
    ),
    (
        "Someone broke in while I was at [work|my mum's|the dentist]. They took the [laptop|radio|rings] and ate "
        "a [banana|whole cheesecake]."
    ),
    (
        "The heating's been out for [nine|six|eleven] days. I'm typing with gloves on and it's [minus "
        "eight|snowing] outside."
    ),
    "I hit a [deer|fox|badger] on the [B42|forest road|way home]. I sat with it until it was over.",
    (
        "I'm [forty-five|thirty-seven|fifty] and I'm too scared to drive on the motorway. I take country roads "
        "for [three|four] hours instead."
    ),
    (
        "I scraped a parked [Porsche|Audi|hearse] and drove off. That was [yesterday|on Monday]. Nobody saw. I "
        "did, though."
    ),
    "They took my licence for [three|six|nine] months. I live [nine|fourteen] kilometres from the nearest bus.",
    (
        "Stuck at [Frankfurt|Gatwick|Madrid] airport since [last night|five this morning]. My suitcase is in "
        "[Oslo|Lima|Izmir], apparently having a better time."
    ),
    (
        "I fell asleep on the train and woke up in [Belgium|the depot|a town I've never heard of]. Big meeting "
        "in [two hours|forty minutes]."
    ),
    "I'm on my first trip alone, in [Lisbon|Kraków|Hanoi], and I ate dinner with a book and I loved it!",
    "Somebody stole my passport in [Naples|Marrakesh|Prague]. The consulate opens on [Monday|Thursday].",
    (
        "The car died on the [level crossing|ring road|ferry ramp]. [Six|Ten] men got out to give advice. None "
        "of them pushed."
    ),
    "I hate flying. I fly in [nine|four] days. I've already read about every crash since [1977|1982].",
    (
        "My old van failed its inspection: [brakes, rust, both lights|rust, exhaust and all four tyres]. It's "
        "carried me for [310,000|240,000] kilometres."
    ),
    (
        "I'm cycling from [Bremen|Dublin|Turin] to [Athens|Porto|Gdansk] and it's been raining for [eight|five] "
        "days, and my left knee has filed a complaint."
    ),
    (
        "My phone fell in the [canal|harbour|compost toilet] with all the photos of my [dad|gran|old dog]. No "
        "backup. None."
    ),
    "I sent a screenshot of a [nasty|silly|very honest] message TO the person it was about.",
    (
        "Somebody got into my account and is asking all my contacts for [gift cards|money|codes]. My old "
        "[priest|headmaster] fell for it."
    ),
    (
        "I'm [seventy-four|eighty-one|sixty-nine] and the bank now wants me to do everything with an app. I "
        "don't own a smartphone. I don't want one."
    ),
    (
        "My printer will only print if I [pay a monthly fee|hold the lid shut|buy magenta]. The document has no "
        "colour in it [at all|whatsoever]."
    ),
    "An algorithm turned down my [loan|job application|insurance] in [four|seven] seconds. Can one argue with that?",
    "My laptop did an update, and [two|three|four] chapters are gone. I'm staring at a blue screen with a sad face.",
    (
        "A computer does my job now. I'm a [translator|illustrator|copy editor]. They pay me to correct it, for "
        "[a third|half] of the rate."
    ),
    "I finally built a [shelf|robot arm|radio] from scratch and it works. It leans a bit. But it works!",
    (
        "I posted one angry comment about a [bike lane|restaurant|football coach], and now [three thousand|nine "
        "hundred] people want me dead."
    ),
    (
        "I've lost my grandmother's [ring|brooch|thimble]. I had it in the [changing room|garden|garage]. I've "
        "sieved the hoover bag twice."
    ),
    (
        "I dropped the [blue jug|mantel clock|Christmas angel] that's been in the family for [a century|four "
        "generations]. It's in [thirty|a dozen] pieces on a tea towel."
    ),
    (
        "My notebook is gone. [Five|Seven|Two] years of [recipes|poems|bird lists], left on the [tram|roof of "
        "the car|ferry]."
    ),
    (
        'A stranger handed in my wallet with every note still in it, and a [pressed flower|bus ticket with "have '
        'faith" on it].'
    ),
    (
        "The dishwasher flooded the [kitchen|hall] and then the floor came up like a [wave|pie crust]. Insurance "
        'says it\'s "gradual".'
    ),
    "I threw away the wrong [box|bag] on tip day. The one with the [letters|medals|baby shoes].",
    "My tortoise has been gone since [Tuesday|Saturday]. How far can a tortoise even get?",
    (
        "The dog can't get up any more. She's [fifteen|fourteen|sixteen]. The vet's coming at [four|ten], and "
        "I'm lying on the rug with her."
    ),
    (
        "I've adopted a [three-legged|half-blind|deaf] [cat|greyhound]. It's hated me from under the "
        "[sofa|bathtub] for [nine|four] days."
    ),
    "My parrot [Coco|Winston|Lola] learned my alarm tone. I've been up since [four|five] on a [Sunday|bank holiday].",
    (
        "A [marten|fox] got into the coop last night. [Eleven|Seven|Nine] hens. One survived, she's on the roof "
        "and won't come down."
    ),
    "My horse has [colic|laminitis]. I'm walking circles with him in the [dark|rain] and waiting for headlights.",
    "Our cat came home after [seven weeks|four months]! Fat! Somebody's been feeding her [salmon|better than us]!",
    (
        "My allergy test says [cat|dog], in capital letters. [Biscuit|Mister Paws|Pickle] is asleep on my feet "
        "right now."
    ),
    "My bees didn't make it through the winter. Three hives. It's so quiet by the [shed|plum tree|fence].",
    (
        "The shelter asked me to take a second [rabbit|dog|kitten] and I said yes before they'd finished the "
        "sentence. My flat's [thirty|forty-one] square metres."
    ),
    '[Fourteen|Twenty-two|Thirty] publishers. The last one wrote: "competent". Competent!',
    (
        "I was [two|four] bars into my solo when I forgot it. All of it. In front of [three hundred people|my "
        "whole village|the jury]."
    ),
    (
        "I sold a painting! To somebody I don't know! For [120|85|300] euros, and it's the one with the ugly "
        "[horse|boat]."
    ),
    (
        "I haven't written a word since [the first book|spring|the review]. I sharpen pencils. I've got "
        "[forty|sixty] very sharp pencils."
    ),
    "My band broke up in a [motorway services|rehearsal room|group chat]. Over a [tambourine|van|song about ducks].",
    "The gallery used my [photo|print] on [tote bags|posters] without asking. I saw one on the [metro|beach].",
    (
        "I'm [sixty-three|fifty-nine|seventy] and I've started the [cello|accordion|harp]. The neighbours have "
        "begun to leave the house at five."
    ),
    (
        "I didn't get the part. I got \"[second tree|voice of a radiator|woman with bucket]\". I'm "
        "[thirty-nine|forty-four]."
    ),
    (
        "I make little [ceramic whales|wooden spoons|felt owls], and the market stall costs more than I sell. "
        "Stop or go on?"
    ),
    (
        "I tore my [cruciate ligament|Achilles|hamstring] three weeks before the [marathon|final|trials]. I "
        "heard it go. It sounded like a [carrot|door]."
    ),
    "I came last in the [triathlon|park run|regional swim]. They'd already taken down the finish.",
    (
        "The coach told me in the [car park|corridor] that I'm not in the squad any more. I've been there since "
        "I was [eight|nine|eleven]."
    ),
    "I've run [ten|five|eight] kilometres without stopping, and I was the kid with the note from the doctor!",
    (
        "My climbing partner let go of the rope for [a second|two seconds]. I'm fine. I don't want to go up "
        "again, and it's all I do."
    ),
    (
        "I've had [three|four|five] concussions from [rugby|ice hockey|judo], and now I lose words. I said "
        '"[the milk animal|the hand shoe]" yesterday.'
    ),
    "I'm the goalkeeper who let in [nine|eleven|seven] on [Sunday|Saturday]. There's a video. It has music.",
    (
        "A boy stood up for me on the tram today. I'm [fifty-one|forty-eight|fifty-six]. I looked behind me to "
        "see who he meant."
    ),
    (
        "I'm [eighty-three|seventy-nine|eighty-six] and this year I crossed out [five|six|four] names in my "
        "address book."
    ),
    "I walked into the [cellar|pantry] and didn't know why. That's normal. But then I didn't know which house.",
    "They say it's time for [a home|sheltered housing]. I can still cook. I burned one [pan|tea towel], that's all.",
    "I turn [thirty|forty|fifty] on [Saturday|Sunday] and I'd rather be left in a [ditch|cupboard] till it's over.",
    "I saw my own hands on a photo and thought they were my [mother's|father's|grandmother's].",
    (
        "I need form [27b|C-14|A38] to get the certificate, and the certificate to get that form. I'm not making "
        "that up."
    ),
    (
        "According to the [registry office|health insurer|pension office], I died in [April|December]. I'm on "
        "the phone as a dead person."
    ),
    (
        "My [residence permit|visa|work permit] runs out on the [12th|19th|30th] and the earliest appointment is "
        "[two|five] weeks after."
    ),
    (
        "I've been here [six|four|nine] years and I still rehearse a sentence before I [buy stamps|order "
        "coffee|ring the doctor]."
    ),
    (
        "The child benefit office wants proof that my [son|daughter] exists. The proof is under the table, "
        "[eating a crayon|barking]."
    ),
    "I passed the [B1|B2] test! I can officially complain about the [trains|weather] in this language now!",
    "My asylum hearing is on [Monday|the 8th|Wednesday]. I have to tell it all again, to a stranger with a stamp.",
    (
        "People hear my accent and speak LOUDER. I've got a [doctorate|degree in chemistry] and I'm mopping a "
        "[school|clinic]."
    ),
    (
        "I dream in the new language now. This morning I couldn't find the old word for "
        "[thimble|dragonfly|ladle], and it broke something."
    ),
    (
        "They spelled my name wrong on the citizenship certificate. [Eight|Eleven] years, and it says "
        "[Gregory|Marta|Joan]."
    ),
    "I don't think I believe in God any more. I'm [a deacon|the organist|the pastor]. Sunday's in [three|two] days.",
    (
        "I went into a church to get out of the [rain|heat] and stayed for [two hours|the whole evening]. I "
        "don't know what happened in there."
    ),
    (
        "First [Ramadan|Lent] away from home. I broke my fast with a [vending machine sandwich|bag of crisps] on "
        "platform [four|nine]."
    ),
    (
        "I left the community I was born into. I've never [cut my own hair|voted|eaten a prawn] before, and I'm "
        "[twenty-six|thirty-one]."
    ),
    (
        "There were sirens in my home town again. I watch it on a phone, in the queue at a [bakery|car wash], "
        "and people talk about [rolls|rims]."
    ),
    (
        "I can't look away from the news. I know the names of [rivers|villages|ministers] I'd never heard of in "
        "[January|spring]."
    ),
    "My old unit is being sent out again, and I'm here [fixing lawnmowers|selling kitchens]. I should feel lucky.",
    (
        "The river's at [seven metres ten|six metres forty] and rising. We carried everything to the "
        "[attic|first floor]. Now we wait."
    ),
    "I came here from the war with one bag. Today I bought a [lamp|rug|teapot], and I felt guilty all the way home.",
    "I'm so bored that I've sorted the [spices|screws|buttons] by [colour|size], and then by how much I like them.",
    "Nothing's wrong. That's the thing. Good job, nice flat, [fit|healthy], and every evening I think: is that it?",
    (
        "It's [Sunday|Saturday], it's raining and I've watched the washing machine do [a full cycle|two cycles]. "
        "Entertain me or scold me."
    ),
    (
        "Two offers: the safe one in a [ministry|town hall] for life, or [a year on a research ship|a start-up "
        "with no money and a dog]. I flip a coin and don't like how it lands."
    ),
    (
        "Should I have the [knee|back|wrist] operation now, or wait and hope? One surgeon says now, the other "
        "one says never."
    ),
    (
        "Keep the [allotment|boat|piano] or sell it? I use it about [four|three] times a year, and I think of it "
        "every day."
    ),
    (
        "I can go back to [Portugal|Ghana|Poland] and be near the sea, or stay here and be able to pay the "
        "dentist. What would you weigh first?"
    ),
    (
        "I turned down a place at [a dance school|drama school|a flying school] when I was [eighteen|nineteen]. "
        "I drove past the building today."
    ),
    "I should've gone to the doctor in [March|June]. It was a small spot then.",
    (
        "I sold my [rare Beatles album|saxophone|grandfather's watch] for [90|140|60] euros when I was broke. I "
        "saw it in a shop window for [900|1,400]."
    ),
    "I never learned to swim, and now my [granddaughter|nephew] wants to go in the deep end with me.",
    (
        "I was the one who bullied a boy called [Dennis|Timo|Colin] at school. I looked him up last night. I've "
        "no idea what to do with that."
    ),
    (
        "Twenty years ago I had the chance to live in [New Zealand|Canada|Rome], and I stayed because of a "
        "[sofa|mortgage|kitchen]."
    ),
    "My tomatoes are red. [Four|Three|Six] of them. I know it's nothing, but I go out and look at them.",
    (
        "I fixed the [dripping tap|bicycle|toilet cistern] myself with a video and a [spoon|butter knife], and I "
        "feel like a king."
    ),
    (
        "I found a [twenty|fifty] in my winter coat, the bus came right away, and someone called me [young "
        "man|young lady]. I'm [sixty-six|seventy-two]."
    ),
    "I saw a [kingfisher|hoopoe|lynx] today. I've been waiting [nine|fifteen] years for that. I had nobody to nudge.",
    "I slept through the night! [Eight|Seven|Nine] hours! Who AM I?",
    "I've finally thrown out the [exercise bike|broken chairs|wedding magazines], and the room echoes. It's lovely.",
    "My soufflé stood up. It stood for about [forty|twenty] seconds, and I've got [a photo|a witness].",
    "I've never told anyone: I wasn't sick in [2016|2014|2011]. I was in prison.",
    "I've got a second name. I was adopted, and on [Tuesday|Friday] a letter came with the other one.",
    "I'm going to say it here first: I don't want to be a [doctor|priest|police officer] any more.",
    "I steal. Small things, [lipsticks|batteries|cheese]. I don't need them, and I've got a drawer full.",
    (
        "I invented my degree. I've been an engineer for [eleven|eight|fourteen] years without one, and they've "
        "just announced an audit."
    ),
    "I hear a voice sometimes. It's not mean. It [counts|reads the street signs]. I've never said so to a doctor.",
    "I was in the car on the night [Marek|Danny|Olivia] died. I've always let people think I wasn't.",
    (
        "Every [Thursday|Tuesday] I say I'm at the gym. I'm at the [cinema|aquarium|bus museum], alone, with a "
        "big bag of liquorice."
    ),
    (
        "I'm [twenty-nine|thirty-five|forty] and I can't ride a bike, and our team day is a [bike tour|ride "
        "round the lake]."
    ),
    (
        "I live with my [stammer|tic] and I've been asked to give the [toast|safety briefing|keynote] on "
        "[Friday|the 14th]."
    ),
    (
        "The dentist says [four|three] root canals. I haven't been since [2015|school]. I'm gripping the kitchen "
        "table as I type."
    ),
    (
        "I'm the caretaker of a school and last night someone set fire to the [bike shed|shed by the gym]. I'd "
        "painted it [on Saturday|in the holidays]."
    ),
    (
        "I've been cut from [full time to twelve hours|forty hours to fifteen] at the [garden "
        'centre|cinema|hotel]. They said "flexible".'
    ),
    "I babysit for a family who pay me in [leftover curry|compliments|old clothes]. I don't know how to bring it up.",
    (
        "I drive a lorry. Tonight I'm parked near [Ghent|Linz|Zaragoza], and it's my [daughter's recital|son's "
        "birthday] in about an hour."
    ),
    "I'm a judge's clerk, I typed a wrong [date|name], and a man stayed locked up for [two|four] extra days.",
    (
        "I volunteered to run the [school fair|village fete|choir trip] and it's eating me alive. There's a war "
        "about the [cake stand|raffle]."
    ),
    "Why do I apologise to [chairs|doors|mannequins]? Serious question. I did it in front of a client.",
    "Can a person just run out of ambition? I used to want things. Now I want [soup|a bench].",
    "How do you cook for one? I threw out half a [cabbage|lasagne|chicken] again.",
    'Does it ever stop, that tiredness? I had a [blood test|check-up] and it\'s all "within range".',
    "Is it normal to miss a [hospital|job I hated|flat with no heating]?",
    (
        "What do you do when you've done a thing [a hundred|a thousand] times and one day your body says no? I "
        "couldn't get on the [stage|ladder|plane]."
    ),
    (
        "Quick one. Dress shoes or boots for a [court date|job trial in a bakery]? I've got [an hour|forty "
        "minutes] and sweaty palms."
    ),
    "ugh. [parking ticket, wet socks, burnt rice|flat tyre, wet socks, cold tea]. In that order.",
    "Help, I've been made employee of the month. There's a photo wall. I look like a [boiled egg|hostage].",
    (
        "not a good day. [Power's out|The lift's stuck], [the freezer's thawing|my ice cream's melting] and I'm "
        "on floor [eleven|nine|fourteen]."
    ),
    (
        "So. I quit. No plan, no savings, just stood up in the [stocktake|morning meeting] and walked out to the "
        "[river|car]."
    ),
    "I'm pregnant and I'm a [pilot|dancer|stunt rider]. I've got maybe [two months|ten weeks] before it shows.",
    (
        "My stoma bag burst on the [plane|tram]. A [flight attendant|schoolgirl] gave me her cardigan to tie "
        "round me and didn't say a word."
    ),
    (
        "I had a mild stroke in [May|September]. Everyone says how well I look. I can't do the "
        "[crossword|buttons on my shirt]."
    ),
    (
        "My voice is gone. I'm a [singer|primary school teacher|market crier], and the doctor ordered "
        "[three|four] weeks of silence."
    ),
    "I've been told to eat more by my doctor. I hide [bread|half of it] in napkins. I'm [seventeen|forty-nine].",
    (
        "They rang from the clinic: my kidney's come. After [three|four|six] years. Taxi's on its way, and I "
        "can't find my [slippers|charger]."
    ),
    (
        "My [ADHD|autism] diagnosis came through at [fifty-one|forty-four|thirty-eight]. I laughed, then I was "
        "angry about the whole of the [eighties|nineties]."
    ),
    (
        "I gave blood for the first time and didn't faint. They gave me a [biscuit|sticker|juice box], and I "
        "wore it all day, sort of."
    ),
    (
        "I'm snowed in on [a mountain farm|a lighthouse island] with [eleven sheep|two goats] and a library book "
        "I've read twice."
    ),
    "The clocks went back and so did I. In bed by [seven|eight], every night this week.",
    "I hate summer. It's [thirty-six|thirty-eight] degrees in my attic room, and I've got my feet in a bucket.",
    "Christmas shift at the [petrol station|airport|care home] again. I put my own name down. Don't ask me why.",
    "I'm in line for the [passport office|embassy], number [418|602]. They're at [73|119].",
    "Jury duty starts [Monday|next week]. It's a [murder|fraud] case. I can't even choose a pizza.",
    (
        "I got [pulled over|stopped at the border] with my [sister's|boss's] prescription pills in the glove "
        "box. They kept my papers."
    ),
    "The union wants us out on strike from [Thursday|midnight]. I'm for it, and I've got [two|three] rents overdue.",
    (
        "I found my old diary. I was [twelve|fourteen], and I'd written down what I'd be by now. A [vet on "
        "Mars|famous flautist]."
    ),
)

FOLLOWUPS: tuple[str, ...] = (
    "I rang them. They put me on hold for [forty minutes|an hour] and then the line went dead.",
    "It's got worse since [this morning|yesterday], to be honest.",
    "I wrote a list like people say you should. It has [nineteen|twenty-three|eleven] points.",
    "What would you do [first|tonight|next], if it was you?",
    'I told my [sister|neighbour|flatmate] just now. She only said "oh".',
    "Sorry, I had to go out for a [minute|while]. The [dog|bin|doorbell] didn't care about my crisis.",
    "I've barely eaten today. [A banana|Half a pretzel|Two crackers], I think.",
    "There's something I left out. It's happened before, in [2018|2020|my twenties].",
    "[Maybe|Perhaps|Could be] I'm making too much of it?",
    "The letter's lying on the [fridge|piano|windowsill] and I can't bring myself to touch it.",
    "Do you think it's too late to [put it right|say sorry|start over]?",
    "I've got until [Thursday|the 30th|Monday noon]. Then it's out of my hands.",
    "I haven't slept [much|at all|since Sunday], if that explains the typing.",
    "Easy to say. I've tried that [twice|three times].",
    "[Hm|Huh|Well]. I hadn't seen it that way [before|until now|].",
    "Everyone keeps telling me to [relax|breathe|look forward]. I could throw a [shoe|plate].",
    "What if it all goes wrong [in front of everybody|again]?",
    "I went for a walk round the [lake|block|cemetery]. It helped for about ten minutes.",
    "I started laughing on the [stairs|bus] about it and couldn't stop. Is that a bad sign?",
    "No, I haven't told anyone at [work|home|church]. They'd never look at me the same.",
    "My stomach's in knots. It's like before an exam, only it's been [nine|six] days.",
    "It's the evenings, mostly. From about [seven|eight] on.",
    "And who's going to pay for it? I've got [300|450|120] in the account.",
    "I keep going over it. The [corridor|kitchen|waiting room], the light, what I said.",
    "Update: they [moved it to next week|called back]. I don't know if I'm glad or furious.",
    "Can I ask you something [stupid|odd|a bit personal]?",
    "I'm writing this in the [stairwell|car|laundry room] so that nobody hears me sniff.",
    "I used to be good at this sort of thing. When did that [stop|change|go away]?",
    "My [father|gran|old boss] would've said \"chin up\". I'm so tired of keeping my chin up.",
    "How long does it take until you don't think about it every [hour|night|time the phone rings]?",
    "I did it. I actually pressed send. My hands are [freezing|wet].",
    "Well, I lied about one part. It was me who [started it|forgot].",
    "It's only [Tuesday|Wednesday|ten in the morning]. How is that possible?",
    "I made some [tea|cocoa|broth] and let it go cold. That's the sort of day it is.",
    "Tell me [honestly|straight], is there something I'm not seeing?",
    "The worst of it is that I knew. I knew since about [Easter|August].",
    "I'm not asking for a miracle. [One quiet week|One good phone call] would do.",
    "There's a woman in the waiting room with a [parcel|violin] on her knees. I keep wondering what her news is.",
    "I've looked it up, and the internet gives me [four|seven] different answers.",
    "Part of me just wants to get on the first train to [anywhere|the sea].",
    "I'm better than an hour ago, I think. I've had a [shower|sandwich].",
    "What do I even say when [they ask|my mum asks|the others ask] how I am?",
    "It isn't the [money|time|pain], really. It's that I feel like a [fool|fraud|burden].",
    "Somebody has just knocked. I'm pretending I'm not [here|home].",
    "I wish I could fast forward to [spring|next year|Saturday].",
    "I found the old [receipt|contract|photo] in a drawer. It says what I remembered. So I'm not mad.",
    "Should I wait another [week|day or two] or go straight there tomorrow?",
    "My doctor gave me [two|three] weeks off. I don't know what to do with [them|so much time].",
    "Right now I'm folding the same [towel|shirt] for the fourth time.",
    "And then I thought: what if nobody [notices at all|turns up|believes me]?",
    "You know what's [odd|funny|strange]? It's the small bit that hurts most.",
    "I'm [fifty|thirty-two|forty-five]. Shouldn't I know how to handle things by now?",
    "Okay. I'll try it on [Friday|Monday]. If I back out, I'll tell you.",
    "They offered me [200|500|a voucher] and an apology. Do I take it?",
    "I can hear the people next door [laughing|singing|watching the match]. It makes it stranger.",
    "Does that sound [selfish|mad|childish]?",
    "I've got one thing done, at least: the [form's filled in|bag's packed|call's booked].",
    "Some days I manage. Today I put on [two different shoes|my jumper inside out].",
    "My [aunt|colleague|cousin] went through the same and got over it in a month. So why can't I?",
    "It [rained|snowed|poured], the [bus|tram] didn't come, and I stood there and thought about all of it again.",
    "I don't want advice for [a second|a minute|tonight]. I just want to have said it.",
    "How do I get through [tomorrow|the weekend|the next three days]?",
    "I keep my phone face down in case they [write|call].",
    "I deleted the draft. [Four|Six|Two] times. It sounds like begging.",
    "Actually there's a bit of good news: [the fever's down|they gave me an extension|I get to keep the key].",
    "What's the worst that can happen [on Monday|tomorrow|now]? No, really, I'd like to hear it from someone else.",
    "Everything in the [flat|house] reminds me of it. Even the [kettle|coat rack].",
    "Is there a [name|word|cure] for that?",
)
