"""Words and phrases of the review grammar, by domain and polarity; how they are put together is in reviews.py.

Singular nouns only (or mass nouns), so that every subject takes "is", "was" and "it".
"""

from __future__ import annotations

ITEMS = {
    "food": (
        "green tea|black tea|dark chocolate|olive oil|tomato soup|peanut butter|maple syrup|dog food|cat food|popcorn|"
        "hot sauce|strawberry jam|apple juice|coffee|cereal|granola|honey|cheese|rice|pasta|pizza|bread|banana bread|"
        "ginger cookie mix|protein bar|iced tea|lemon cake|beef jerky|almond milk|coconut water|pancake mix|salsa|"
        "chicken soup|baby food|snack mix|trail mix|mustard|vanilla yogurt|energy drink|curry paste"
    ),
    "restaurant": (
        "café|restaurant|diner|pizzeria|bakery|steak house|noodle bar|seafood place|burger place|bistro|coffee shop|"
        "sushi bar|taco truck|brunch spot|pub|tea room|food court|ice cream shop|buffet|wine bar"
    ),
    "film": (
        "film|movie|comedy|thriller|drama|horror film|documentary|western|sequel|remake|love story|war film|cartoon|"
        "crime film|mystery|musical|short film|spy film|family film|science fiction film|TV series|new episode"
    ),
    "book": (
        "book|novel|biography|cookbook|collection of stories|travel guide|detective novel|memoir|history book|"
        "fantasy novel|"
        "picture book|audiobook|poetry collection|textbook|romance novel|children's book|comic book|magazine"
    ),
    "hotel": (
        "hotel|hostel|guest house|beach resort|motel|cabin|holiday flat|campsite|city hotel|spa hotel|country inn|"
        "mountain lodge|bed and breakfast|airport hotel|villa|cottage"
    ),
    "gadget": (
        "phone|laptop|camera|kettle|toaster|vacuum cleaner|blender|coffee machine|lamp|backpack|watch|headset|speaker|"
        "printer|keyboard|mouse|tablet|bicycle|tent|jacket|office chair|mattress|umbrella|alarm clock|fan|heater|"
        "water bottle|frying pan|knife|drill|video game|toy train|router|screen|charger|pair of shoes"
    ),
}
ASPECTS = {
    "food": "taste|flavor|texture|smell|price|packaging|quality|first bite|aftertaste|color|consistency",
    "restaurant": "service|food|menu|soup|main course|dessert|atmosphere|waiter|music|price|kitchen|staff|coffee|salad",
    "film": "plot|acting|story|ending|music|script|dialogue|cast|main character|camera work|opening scene|"
    "second half|pace",
    "book": "plot|writing|story|ending|main character|first chapter|style|translation|cover|dialogue|last chapter|pace",
    "hotel": "room|staff|breakfast|bed|location|pool|view|bathroom|reception|service|price|shower|garden|internet",
    "gadget": "battery|quality|design|sound|price|handle|delivery|size|color|manual|build|finish|"
    "customer service|weight",
}
PEOPLE = (
    "my wife|my husband|my son|my daughter|my mother|my father|my brother|my sister|my friend|my neighbor|a colleague"
)
TIMES = (
    "last week|last month|yesterday|on Monday|on Friday|two weeks ago|a month ago|in the spring|this summer|"
    "over the weekend|last night|in June|during the holidays|this morning|a few days ago"
)

GOOD = (
    "great|good|excellent|wonderful|fantastic|amazing|perfect|lovely|superb|brilliant|delightful|outstanding|"
    "impressive|"
    "terrific|really nice|very good|first class|a pleasure|a real treat|better than expected|worth every penny|"
    "the best I have had|simply beautiful|absolutely amazing|just right|so good|quite remarkable|a joy|"
    "well worth it|charming"
)
BAD = (
    "bad|terrible|awful|horrible|poor|disappointing|dreadful|a disaster|a waste of money|unpleasant|mediocre|lousy|"
    "very bad|really poor|worse than expected|far too expensive|the worst I have had|a complete mess|simply terrible|"
    "not good at all|nothing special|below average|a joke|hard to like|quite useless|a letdown|so bad|annoying|sad|ugly"
)
DOMAIN_GOOD = {
    "food": "delicious|tasty|fresh|rich and smooth|full of flavor|sweet but not too sweet|crisp|yummy|creamy|addictive",
    "restaurant": "friendly|warm and welcoming|delicious|fresh and tasty|attentive|cozy|full of flavor|relaxed|"
    "fast and polite",
    "film": "gripping|funny|moving|clever|beautiful|exciting|touching|never boring|full of heart|hilarious|powerful",
    "book": "gripping|moving|clever|beautifully written|hard to put down|exciting|wise and funny|full of life|"
    "inspiring",
    "hotel": "clean|comfortable|quiet|friendly|spotless|spacious|helpful|peaceful|warm and welcoming|bright and modern",
    "gadget": "reliable|sturdy|fast|easy to use|well made|comfortable|quiet|elegant|solid|very practical|"
    "light but strong",
}
DOMAIN_BAD = {
    "food": "stale|bland|bitter|too salty|watery|dry|rotten|disgusting|burnt|greasy|far too sweet|tasteless|"
    "like cardboard",
    "restaurant": "rude|cold|slow|greasy|noisy|overpriced|dirty|bland|undercooked|unfriendly|burnt|chaotic",
    "film": "boring|predictable|silly|too long|flat|confusing|painful to watch|lifeless|dull|full of clichés|wooden",
    "book": "boring|predictable|badly written|too long|confusing|flat|dull|full of mistakes|shallow|"
    "hard to follow|tedious",
    "hotel": "dirty|noisy|cold|tiny|rude|uncomfortable|smelly|run down|overpriced|damp|dark and gloomy|unfriendly",
    "gadget": "broken|flimsy|slow|cheap|useless|hard to use|noisy|uncomfortable|badly made|heavy and clumsy|"
    "unreliable|faulty",
}
# Sentences that carry the verdict; "it" is the item of the review.
GOOD_SENTENCES = {
    "any": (
        "I love it.|We loved it.|I really enjoyed it.|I am very happy with it.|It made my day.|"
        "I recommend it to everyone.|"
        "Highly recommended!|I would recommend it.|Five stars from me.|Thank you so much!|It was better than I hoped.|"
        "It was not bad at all, in fact it was {good}.|I cannot complain about anything.|It is worth the money.|"
        "I have nothing but praise.|What a nice surprise!|Everyone was delighted.|{person} [loves|loved] it too.|"
        "It was {so_good}.|It could not have been better.|I am glad I chose it.|You will not regret it."
    ),
    "food": (
        "I will buy it again.|My kids love it.|The taste is {good}.|I eat it every day.|It goes well with everything.|"
        "It is my new favorite.|It tastes fresh and {good}.|We finished it in one day.|I just ordered two more.|"
        "The flavor is [rich|lovely|perfect].|It arrived fresh and on time."
    ),
    "restaurant": (
        "We will come back.|The staff was [so|very] friendly.|The food came quickly and tasted {good}.|"
        "It is our favorite place now.|"
        "Everything was fresh and tasty.|We had a wonderful evening.|The waiter made us feel welcome.|"
        "Best {dish} in town!|"
        "The prices are fair.|I am already planning my next visit."
    ),
    "film": (
        "I laughed all the way through.|The acting is superb.|I would watch it again.|"
        "It kept me on the edge of my seat.|"
        "The whole family enjoyed it.|The ending made me cry in a good way.|The cast is brilliant.|"
        "It is one of the best of the year.|"
        "I did not want it to end.|Do not miss it."
    ),
    "book": (
        "I could not put it down.|I read it in one night.|The characters feel real.|The writing is beautiful.|"
        "I learned a lot.|"
        "I will read it again.|I cannot wait for the next one.|The ending is perfect.|"
        "It is one of my favorites now.|It touched me deeply."
    ),
    "hotel": (
        "We slept very well.|The staff was [so|very] helpful.|The room was clean and bright.|"
        "The breakfast was delicious.|"
        "We will stay here again.|The view was beautiful.|It felt like home.|We enjoyed every minute.|"
        "The bed was so comfortable.|"
        "It was the best part of our trip."
    ),
    "gadget": (
        "It works perfectly.|It still works like new.|I use it every day.|It was easy to set up.|"
        "The quality is excellent.|"
        "It arrived early and works great.|It does exactly what it should.|It is a great value.|"
        "I bought another one for {person}.|"
        "It looks great and feels solid."
    ),
}
BAD_SENTENCES = {
    "any": (
        "I hate it.|We hated it.|I did not enjoy it.|I am very unhappy with it.|It ruined my day.|"
        "I cannot recommend it.|"
        "Not recommended!|I would not recommend it.|One star from me.|Save your money.|It was worse than I feared.|"
        "It was not good, in fact it was {bad}.|I have never been so disappointed.|It is not worth the money.|"
        "I want my money back.|"
        "What a disappointment!|Everyone was upset.|{person} [hates|hated] it too.|It was {so_bad}.|"
        "It could not have been worse.|I regret choosing it.|Stay away from it."
    ),
    "food": (
        "I will never buy it again.|My kids refused to eat it.|The taste is {bad}.|I threw it away.|It made me sick.|"
        "It tastes old and {bad}.|Nobody wanted a second bite.|I could not finish it.|The flavor is [weak|"
        "strange|awful].|"
        "It arrived late and broken.|Even the dog would not touch it."
    ),
    "restaurant": (
        "We will not come back.|The staff was [so|very] rude.|The food came late and tasted {bad}.|We left hungry.|"
        "Nothing was fresh.|We waited an hour for cold food.|The waiter ignored us.|Worst {dish} in town!|"
        "The prices are a joke.|I had a stomach ache all night."
    ),
    "film": (
        "I fell asleep halfway through.|The acting is terrible.|I would not watch it again.|"
        "I walked out before the end.|"
        "Nobody in the family liked it.|The ending made no sense.|The cast looks bored.|"
        "It is one of the worst of the year.|"
        "I could not wait for it to end.|Do not waste your time."
    ),
    "book": (
        "I gave up after fifty pages.|I could not finish it.|The characters feel fake.|The writing is clumsy.|"
        "I learned nothing.|"
        "I will not read it again.|I do not want to read the next one.|The ending is ridiculous.|"
        "I wish I had not bought it.|It left me cold."
    ),
    "hotel": (
        "We could not sleep at all.|The staff was [so|very] unfriendly.|The room was dirty and dark.|"
        "The breakfast was stale.|"
        "We will never stay here again.|The view was a brick wall.|It smelled of smoke.|We left a day early.|"
        "The bed was hard as stone.|"
        "It was the worst part of our trip."
    ),
    "gadget": (
        "It stopped working after a week.|It broke on the first day.|I sent it back.|It was a pain to set up.|"
        "The quality is poor.|"
        "It arrived late and damaged.|It does not do what it should.|It is a waste of money.|I had to buy another one.|"
        "It looks cheap and feels flimsy."
    ),
}
NEUTRAL_SENTENCES = (
    "It is okay.|It was about average.|It does the job.|There is not much to say about it.|It is neither good nor bad.|"
    "It is what you would expect.|It comes in two sizes.|We were there for [two|three] days.|I paid [ten|twenty|"
    "thirty] dollars for it.|"
    "I bought it {time}.|It was a gift for {person}.|Some will like it and some will not.|I have no strong opinion."
)
DISHES = "pizza|burger|soup|pasta|coffee|breakfast|curry|steak|cake|sandwich|fish"
# Adjectives that take no "very".
EXTREME = (
    "excellent|wonderful|fantastic|amazing|perfect|superb|brilliant|outstanding|terrific|terrible|awful|horrible|"
    "dreadful|"
    "mediocre|delicious|hilarious|rotten|disgusting|tasteless|undercooked|burnt|lifeless|spotless|broken|useless|faulty"
)
