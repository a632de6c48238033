"""The words of the generated stories, commonest first within each list, and the rules that inflect them.

Every list has words of many initial letters: a policy that is rewarded for adjacent equal initials can find them
without leaving sensible sentences.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words(
    """
    Lily Anna Mia Bella Sue Daisy Molly Emma Rosie Ella Clara Penny Tina Grace Hannah Jane Kate Nora Polly Ruby
    Sara Wendy Zoe Alice Betty Carla Dora Eva Fiona Gina Holly Iris Julia Kitty Lucy Mary Nelly Olga Peggy
    Queenie Rita Sally Tilly Una Violet Willa Yara Abby Becky Cora Dolly Edith Flora Gemma Heidi Ida Jenny Karin
    Laura Maggie Nina Olive Paula Rosa Sophie Tessa Ursula Vera Winnie Yvonne Zelda Amber Beth Cindy Diana Elsa
    Faye Greta Hazel Ivy Josie Kelly Lena Martha Nancy Opal Pippa Robin Stella Trudy Vicky
    """
)

BOYS = _words(
    """
    Tim Ben Max Tom Sam Jack Leo Bob Dan Fred George Harry Luke Peter Will Andy Billy Carl David Eddie Finn Gus
    Henry Ivan Jim Kevin Louis Mark Ned Oscar Paul Quentin Ray Simon Teddy Victor Walter Zack Adam Barney
    Charlie Danny Eric Felix Greg Hugo Ian Joe Karl Larry Martin Nick Otto Patrick Ralph Steven Toby Vince Wally
    Yuri Albert Bruno Colin Dennis Elmer Frank Gary Harold Jacob Kurt Leon Milo Noah Oliver Percy Roger Stanley
    Tony Waldo Amos Boris Casper Dexter Emil Fergus Gilbert Hector Jasper Lance Morris Nigel Owen Pablo Rufus
    Sidney Tyler Wilbur
    """
)

PEOPLE = _words(
    """
    girl boy child king queen farmer baker teacher doctor prince princess sailor painter gardener fisherman
    singer dancer baby hunter knight nurse pilot cook driver wizard builder captain clown dentist explorer fairy
    giant hero inventor juggler lady musician neighbor officer pirate ranger scientist tailor uncle vet waiter
    writer actor barber carpenter detective elf friend gnome helper jeweler keeper librarian miller nanny orphan
    potter robot shepherd soldier trader traveler twin weaver witch zookeeper mermaid drummer dwarf firefighter
    goblin hiker mayor merchant monk plumber porter runner student tinker troll visitor wanderer woodcutter
    """
)

ANIMALS = _words(
    """
    cat dog bear bird rabbit fox mouse frog duck fish pig lion horse owl bunny puppy kitten cow sheep goat
    squirrel turtle monkey wolf tiger elephant hen bee butterfly dragon deer crab crow donkey goose hamster
    hedgehog kangaroo lamb lizard mole otter panda parrot penguin pony raccoon rat seal snail snake spider swan
    toad whale zebra ant badger bat beaver beetle calf camel chick chicken cricket crocodile dolphin dove
    dinosaur dragonfly eagle falcon ferret firefly fly foal gecko gerbil giraffe gopher gorilla grasshopper gull
    hare hippo hawk heron iguana jaguar jay jellyfish koala kingfisher ladybug leopard llama lobster lynx magpie
    mammoth meerkat moose moth mule newt octopus ostrich ox panther peacock pelican pigeon piglet platypus
    porcupine possum puffin quail raven reindeer rhino robin rooster salamander seahorse shark shrimp skunk
    sloth sparrow squid starfish stork swallow tadpole termite turkey unicorn vulture walrus warbler wasp weasel
    wombat woodpecker worm yak
    """
)

CHARACTER_ADJECTIVES = _words(
    """
    little happy brave kind small big funny clever sad shy young old silly friendly gentle curious cheerful
    lonely tiny quiet busy careful lazy hungry sleepy proud polite smart sweet strong good nice playful jolly
    merry lovely noisy nervous wise lucky tall thin angry anxious bold bright calm caring charming chatty clumsy
    cuddly cute daring dear determined dreamy eager elegant energetic fair faithful famous fearless fluffy fussy
    generous giggly gleeful glum graceful greedy grumpy handsome hardworking healthy helpful honest hopeful
    humble humorous impatient innocent jealous joyful keen lively loud loving loyal mild mischievous modest
    moody naughty neat nimble nosy obedient odd patient peaceful peppy perky plain plucky plump poor popular
    pretty puzzled quick rich rough rowdy royal scared selfish sensible serious skillful slim sneaky special
    spirited stubborn sunny tender thankful thirsty thoughtful tidy timid tired trusty upset unusual vain warm
    weary wild witty worried yawning zany
    """
)

THINGS = _words(
    """
    ball box toy book hat cake boat flower kite doll stone basket bell star apple blanket balloon drum cup lamp
    map key car letter ring coat crown candle bucket broom bottle bowl boot brush button bag bench bike block
    bone bow brick bubble cap card carrot cart chair chest clock coin comb cookie crayon curtain diamond dish
    dress drawing envelope feather flag flute fork fan fiddle gem gift glass globe glove guitar hammer harp
    helmet hook hoop horn jacket jar jewel jug kettle ladder lantern lace leaf lemon lock log magnet marble mask
    medal melon mirror mitten mug mushroom nail napkin necklace needle nest net nut oar onion orange package
    paddle page pail painting pan pancake paper parcel peach pear pearl pebble pen pencil picture pie pillow pin
    pipe plant plate pot potato present pumpkin puppet purse puzzle quilt raft rattle ribbon rocket rope rug
    ruler sack saddle sandwich scarf seed shell shoe shovel sled slipper sock spade spoon statue stick stool
    string suitcase sword tablet teapot telescope tent ticket tomato tool top towel trumpet tub umbrella vase
    vest violin wagon wallet wand watch wheel whistle wig yo-yo zipper acorn anchor arrow axe badge banana
    banner bead berry bracelet cane canoe chain coconut costume cradle crate cushion dart doughnut egg engine
    frame goblet hankie hose iron jigsaw lollipop mat mattress muffin nightgown notebook notice paintbrush
    parachute peanut piggybank poster quill radio rake robe rose sandal shield skirt snowball spear sponge stamp
    stocking sweater tambourine tie tile torch tray trophy tube turnip twig tulip vine walnut yardstick
    """
)

THING_ADJECTIVES = _words(
    """
    big red little blue shiny old new pretty small green soft yellow special round golden magic warm heavy tiny
    wooden broken long bright beautiful colorful white black brown clean dirty dusty empty fancy fine flat fresh
    giant glowing good great huge hard hidden hollow hot icy juicy jolly large light lost lovely lumpy metal
    muddy narrow neat nice noisy odd orange perfect pink plain pointy precious proper purple queer quaint rare
    ragged rich ripe rough royal rusty sandy sharp short silent silver simple sleek slippery smelly smooth
    square sparkling spotted sticky strange striped strong sturdy sweet tall tasty tattered terrible thick thin
    torn twisted ugly unusual useful valuable velvet vivid wavy weird wet wide wild wonderful woolly wrinkled
    yummy ancient awful blank bouncy bumpy busted cheap chilly chipped clear cold cracked creaky crooked curly
    damp dark dazzling delicate delicious dotted dull dented elegant enormous expensive faded familiar fluffy
    foamy fragile frozen funny fuzzy gigantic glassy gleaming glittering gorgeous grand gray greasy handy jagged
    jeweled knotted leafy leather loose lucky magical massive melted mighty mysterious mossy nifty painted pale
    papery patched plump polished rosy rubber salty scratched secret silky slim solid spare spiky steel steamy
    stony tangled tender tidy tough tin twinkling uneven violet watery waxy whole wobbly worn zigzag
    """
)

PLACES = _words(
    """
    garden forest house park river village beach hill farm castle market town school lake field pond kitchen
    barn cave sea wood bridge mountain meadow tower shop cottage valley island street road path yard zoo library
    bakery harbor tent tunnel city desert jungle palace playground cabin attic cellar orchard stable station
    swamp temple theater museum mill mine nest nursery office ocean inn igloo hall hotel hospital hut gate
    fountain fort fair factory dock den dam creek cliff circus church canyon camp cafe brook bay backyard alley
    airport lagoon lighthouse marsh mansion maze pasture pier plain plaza pool port prairie quarry ranch reef
    ruin shack shed shore stadium stream studio toyshop trail tavern treehouse vineyard volcano warehouse
    waterfall well windmill workshop zone
    """
)

PLACE_ADJECTIVES = _words(
    """
    quiet dark big old green sunny small pretty busy cold warm far lovely little beautiful noisy deep empty
    magic strange tall wide windy peaceful secret bright calm cozy dusty foggy great hidden high large lonely
    misty muddy narrow new pleasant rocky sandy shady silent snowy spooky steep wild winding ancient bare breezy
    broad bustling chilly clean crowded damp distant dreary dry enchanted faraway famous flowery forgotten
    friendly frosty gloomy golden grand grassy haunted hilly huge icy jolly joyful leafy lively lush merry mossy
    mysterious mighty neat nearby nice northern odd open orderly pebbly plain popular quaint rainy remote rich
    royal ruined rustic silvery slippery southern starry stormy tidy tiny tranquil tropical twisty unknown vast
    wet white wonderful wooded
    """
)

FOODS = _words(
    """
    cake soup bread honey milk cheese berries cookies pie apples rice jam salad pancakes fruit candy nuts
    carrots corn beans butter cherries chocolate cream cupcakes dumplings eggs figs fudge ginger grapes gravy
    ham jelly juice ketchup lemonade lettuce lollipops mangoes marmalade melons muffins mushrooms noodles
    oatmeal olives onions oranges pasta peaches peanuts pears peas pickles pizza plums popcorn porridge potatoes
    pretzels pudding pumpkins radishes raisins raspberries sandwiches sausages spaghetti spinach stew
    strawberries sugar syrup tea toast tomatoes turnips vanilla vegetables waffles walnuts water yogurt
    """
)

ADVERBS = _words(
    """
    quickly happily slowly softly quietly carefully gently sadly loudly kindly bravely proudly gladly politely
    sweetly safely nicely neatly eagerly easily angrily badly boldly brightly briskly busily calmly cheerfully
    cleverly closely clumsily coldly cautiously curiously daintily deeply delightedly dreamily excitedly fairly
    faithfully firmly fondly foolishly frantically freely gracefully greedily grumpily hastily heavily honestly
    hopefully hungrily hurriedly impatiently joyfully joyously keenly lazily lightly lovingly loyally madly
    merrily mildly modestly nervously nimbly noisily obediently openly patiently peacefully playfully promptly
    quaintly readily respectfully restlessly rudely sharply shyly silently simply skillfully sleepily smoothly
    sneakily solemnly steadily sternly stubbornly swiftly tenderly thankfully thoughtfully tightly timidly
    tirelessly truly unhappily urgently vainly warmly wearily wildly wisely wonderfully yearningly zestfully
    """
)

FEELINGS = _words(
    """
    happy sad glad proud scared tired excited angry hungry surprised thankful worried lonely afraid brave calm
    cheerful curious cold delighted dizzy disappointed eager embarrassed fine foolish free frightened funny
    grateful great grumpy guilty hopeful hurt impatient jealous jolly joyful kind lazy lost loved lucky merry
    mad miserable nervous peaceful pleased puzzled quiet relaxed relieved rested safe satisfied shocked shy sick
    silly sleepy sorry special startled strong terrible thirsty thrilled uneasy unhappy upset warm weary welcome
    wise wonderful
    """
)

# A verb is `base` where its past is regular and `base/past` where it is not.
MOTION_VERBS = _words(
    """
    go/went run/ran walk hurry skip wander travel rush march jump hop climb crawl dance drive/drove fly/flew
    float gallop glide hike jog journey leap limp paddle parade prance race ride/rode roam roll row sail scamper
    scramble scurry slide/slid slip sneak soar sprint stomp stroll stumble swim/swam swing/swung tiptoe toddle
    tramp trot trudge tumble twirl venture waddle wade whirl wiggle zoom bounce bound bustle cycle dart dash
    drift flee/fled flutter head hasten hover hobble lurch pedal plod pounce return ramble saunter scoot shuffle
    skate ski step strut totter zigzag/zigzagged
    """
)

THING_VERBS = _words(
    """
    find/found take/took see/saw carry like love want hold/held bring/brought get/got keep/kept hide/hid paint
    pick push pull wash borrow buy/bought build/built catch/caught clean collect decorate discover draw/drew
    drag drop dust fetch fix grab guard hang/hung hug inspect juggle kick kiss lift lose/lost lug make/made mend
    move need notice own pack pat polish protect reach repair rescue rub save sell/sold shake/shook share sketch
    sniff spin/spun spot squeeze steal/stole study swap tap throw/threw toss touch trade tug turn twist unwrap
    use wipe wrap yank admire balance bury capture chase choose/chose clutch cover crush dangle deliver examine
    feel/felt finish flip forget/forgot grasp grip handle haul heave invent join launch leave/left lend/lent
    lock measure miss mount nudge observe order patch place poke praise prepare prize quarter raise recover
    remember replace return rock roll scoop scratch scrub search sharpen shelve shine smell sort stack store
    stroke stuff sweep/swept tear/tore tidy tie trace treasure trim try untie value visit wave weigh wheel
    win/won
    """
)

STATE_VERBS = frozenset(
    _words("see like love want own need notice lose leave miss feel forget finish steal capture invent join")
)

PEOPLE_VERBS = _words(
    """
    help hug thank meet/met follow call love visit kiss tickle teach/taught greet invite join like watch
    hear/heard ask answer admire adore amuse approach bless bother calm care chase cheer comfort cuddle dazzle
    dare delight encourage entertain excite face feed/fed find/found fool forgive/forgave frighten guide hail
    hold/held humor impress inspire interrupt kick lead/led mock miss need nudge notice nurse obey pat pester
    pinch please praise protect push puzzle question recognize remind rescue respect reward scare scold serve
    shock soothe spot squeeze startle stop surprise support tease tell/told tempt touch trick trust tug
    understand/understood wake/woke warn welcome wink worry
    """
)

ACTION_VERBS = _words(
    """
    laugh smile sing/sang dance jump cry play sleep/slept clap giggle cheer wave rest nod sigh listen wait
    whistle yawn wonder blink blush bow burp chat chuckle cough cuddle dream/dreamed doze fidget frown gasp gaze
    grin groan growl grumble gulp hiccup hop howl hum joke juggle jiggle kneel/knelt lean lie/lay moan mumble
    murmur mutter nap pant pause peek ponder pout pray purr quack quarrel quiver relax roar rock scream shiver
    shout shriek shrug sit/sat skip sniffle snore snort sob spin/spun squeal squeak squirm stand/stood stare
    stretch sway sweat talk think/thought tremble twirl twitch weep/wept whimper whine whisper wiggle wink
    wobble work worry yelp yodel
    """
)

FOOD_VERBS = _words(
    """
    eat/ate cook make/made share bake taste bring/brought serve prepare enjoy nibble munch gobble chew chop
    devour drink/drank fry grill lick like love mix order peel pour roast sample season slice sip smell sprinkle
    steam stir swallow toast try want warm buy/bought boil crunch cut/cut find/found gather get/got heat need
    offer savor
    """
)

TIME_ADVERBS = _words(
    """
    suddenly soon always never often finally quickly immediately instantly eventually usually together secretly
    constantly daily early luckily
    """
)

FOOD_ADJECTIVES = _words(
    """
    sweet warm fresh yummy hot cold tasty good delicious juicy soft big crunchy creamy ripe little salty sticky
    red green golden bitter black blue brown buttery cheap chilled chewy chocolaty crisp crumbly dainty dried
    fancy fluffy fried frozen fruity funny gooey great healthy heavy homemade hearty icy jellied kingly leafy
    lemony light lovely lumpy mashed melted mild mixed moist mouthwatering mushy new nice nutty odd orange
    peppery pickled pink plain plump purple quick raw rich roasted rosy simple smooth sour spicy steamy sugary
    tangy tart tender thick thin toasted tropical unusual velvety whipped white wholesome wild wonderful zesty
    """
)

SAY_VERBS = _words(
    """
    say/said shout cry whisper reply answer call laugh smile announce beg bellow boast chuckle chirp croak
    declare demand exclaim explain gasp giggle groan growl grumble hiss holler joke mumble murmur mutter observe
    offer plead promise purr roar scream sigh sing/sang snap sob squeak squeal suggest wail warn whimper whine
    wonder yell add admit agree argue boom
    """
)

WEATHERS = _words(
    """
    sunny rainy windy snowy cloudy foggy stormy warm cold hot chilly bright breezy calm clear cool crisp dark
    damp dull fine freezing frosty gloomy golden gray hazy humid icy lovely mild misty nice peaceful perfect
    pleasant quiet silent sparkling spring summer autumn winter wet wild wonderful
    """
)

IRREGULAR_PLURALS = {
    "child": "children", "fisherman": "fishermen", "mouse": "mice", "wolf": "wolves", "sheep": "sheep", "deer": "deer",
    "fish": "fish", "goose": "geese", "calf": "calves", "moose": "moose", "ox": "oxen", "shrimp": "shrimp",
    "squid": "squid", "elf": "elves", "dwarf": "dwarves", "leaf": "leaves", "honey": "honey", "jam": "jam",
    "jelly": "jellies", "yarn": "yarns", "potato": "potatoes", "tomato": "tomatoes", "hero": "heroes", "witch": "witches",
    "scarf": "scarves", "buffalo": "buffaloes",
}  # fmt: skip

DOUBLED = frozenset(
    _words(
        """
        admit unwrap skip hop jog slip trot zigzag get dig drop grab hug knit pat rub scrub spot stir swap
        tap trim wrap flip grip tug hum nap clap chat grin nod sob peg pin plan pop rip run shop sit slam
        spin stop strut swim dip wag drum drag zip step shrug win wed snap beg pet quit whip zap fan
        """
    )
)


def plural(noun: str) -> str:
    """`fox` -> `foxes`."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def past(verb: str) -> str:
    """`carry` -> `carried`; of an entry `run/ran` what is behind the slash."""
    base, _, irregular = verb.partition("/")
    if irregular:
        return irregular
    if base.endswith("e"):
        return base + "d"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ied"
    return base + base[-1] + "ed" if base in DOUBLED else base + "ed"


def base(verb: str) -> str:
    """The infinitive of an entry of a verb list."""
    return verb.partition("/")[0]


def present_participle(verb: str) -> str:
    """`run/ran` -> `running`."""
    word = base(verb)
    if word == "lie":
        return "lying"
    if word == "tie":
        return "tying"
    if word.endswith("e") and not word.endswith(("ee", "oe")):
        return word[:-1] + "ing"
    return word + word[-1] + "ing" if word in DOUBLED else word + "ing"


def superlative(adjective: str) -> str:
    """`big` -> `biggest`, `beautiful` -> `most beautiful`."""
    if adjective in {"good", "fun"}:
        return {"good": "best", "fun": "most fun"}[adjective]
    vowels = sum(a in "aeiouy" and (i == 0 or adjective[i - 1] not in "aeiouy") for i, a in enumerate(adjective))
    if adjective.endswith("e") and vowels <= 2 and len(adjective) <= 5:
        return adjective + "st"
    if adjective.endswith("y") and vowels <= 2:
        return adjective[:-1] + "iest"
    if vowels == 1 and not adjective.endswith(("ed", "ing")):
        short = (
            len(adjective) <= 4
            and adjective[-1] in "bdgmnpt"
            and adjective[-2] in "aeiou"
            and adjective[-3] not in "aeiou"
        )
        return adjective + (adjective[-1] if short else "") + "est"
    return "most " + adjective


def article(following: str) -> str:
    """`a` or `an`, by the sound that follows."""
    word = following.lower()
    if word.startswith(("hour", "honest", "heir")):
        return "an"
    if word.startswith(("uni", "use", "usu", "one", "eu")):
        return "a"
    return "an" if word[0] in "aeiou" else "a"
