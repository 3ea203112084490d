"""Pairs of prompts made by hand: near-duplicates, and different prompts of one template.

The rule of `draftloop.data.prompt_groups` was chosen on the halves TUNING alone; the halves CHECKING were written
beside them and only counted. An edit of the rule may look at the first, never at the second.
"""

from __future__ import annotations

Pair = tuple[str, str]

NEAR_TUNING: list[Pair] = [
    # another full stop, case, white space, quotes
    ("What is Python?", "What is Python"),
    ("What is Python?", "what is python ??"),
    ("Explain recursion.", "Explain recursion!"),
    ("Explain recursion", "EXPLAIN RECURSION..."),
    ("Name three primary colours", "Name  three primary\ncolours."),
    ("Define entropy", '"Define entropy"'),
    ("Who wrote Hamlet?", "Who wrote 'Hamlet'?"),
    ("Who wrote Hamlet?", "Who wrote “Hamlet”?"),
    ("What does `map` do in JavaScript?", "What does map do in JavaScript?"),
    ("List the planets, in order.", "List the planets in order"),
    ("Summarise the French Revolution", "**Summarise the French Revolution**"),
    ("Write a haiku about rain", "- Write a haiku about rain"),
    # please, can you, thanks, hello
    ("Translate 'good morning' to Spanish", "Please translate 'good morning' to Spanish."),
    ("Translate 'good morning' to Spanish", "Could you translate 'good morning' to Spanish, please?"),
    ("Write a function that reverses a string", "Can you write a function that reverses a string?"),
    ("Write a function that reverses a string", "Would you please write me a function that reverses a string"),
    ("Explain how rainbows form", "Explain how rainbows form, thanks"),
    ("Explain how rainbows form", "Hi! Explain how rainbows form. Thank you!"),
    ("Explain how rainbows form", "Hello, could you kindly explain how rainbows form?"),
    ("Suggest a name for a bakery", "Hey, please suggest a name for my bakery"),
    ("How do I boil an egg?", "How do you boil an egg?"),
    ("How do I boil an egg?", "How can I boil an egg"),
    ("How do I boil an egg?", "how to boil an egg"),
    ("Who discovered penicillin?", "I want to know who discovered penicillin"),
    ("Who discovered penicillin?", "Tell me who discovered penicillin."),
    ("Who discovered penicillin?", "Do you know who discovered penicillin?"),
    ("What is the capital of Peru?", "Tell me the capital of Peru"),
    ("What is the capital of Peru?", "Can you tell me what the capital of Peru is?"),
    ("Write a limerick about a cat", "I need you to write a limerick about a cat pls"),
    ("Give me a recipe for pancakes", "I'd like a recipe for pancakes, please"),
    # typos
    ("What is photosynthesis?", "What is photosyntesis?"),
    ("What is photosynthesis?", "What is photosynthesys"),
    ("Explain quantum entanglement", "Explain quantum entaglement"),
    ("How does a refrigerator work?", "How does a refridgerator work?"),
    ("Describe the water cycle and evaporation", "Describe the water cycle and evaporatoin"),
    ("What is the capital of Australia?", "What is teh capital of Australia?"),
    ("Write a python script to rename files", "Write a pyhton script to rename files"),
    ("Recommend a good restaurant in Lisbon", "Recommend a good restaurent in Lisbon"),
    ("What causes earthquakes?", "What causes eartquakes?"),
    # plural, articles, contractions, spelling
    ("How do vaccines work?", "How does a vaccine work?"),
    ("Write a unit test for a stack", "Write unit tests for a stack"),
    ("What is the difference between lists and tuples?", "What's the difference between a list and a tuple?"),
    ("What is inflation?", "What's inflation?"),
    ("Why is the sky blue?", "Why's the sky blue?"),
    ("Why do cats not like water?", "Why don't cats like water?"),
    ("Explain colour theory", "Explain color theory"),
    ("How do I organise a wedding?", "How do I organize a wedding?"),
    ("Describe the centre of the galaxy", "Describe the center of the galaxy"),
    ("How do I analyse survey data?", "How do I analyze survey data?"),
    ("Write a cover letter", "Write the cover letter"),
    # word order, numbers
    ("In Python, how do I sort a list?", "How do I sort a list in Python?"),
    ("Explain gravity in one sentence", "In one sentence, explain gravity."),
    ("List 5 uses of a brick", "List 10 uses of a brick"),
    ("What is 12 times 7?", "What is 13 times 8"),
    ("Summarise in two bullet points the causes of the war", "Summarise the causes of the war in two bullet points"),
    # other languages
    ("¿Cuál es la capital de Francia?", "cual es la capital de francia"),
    ("Was ist die Hauptstadt von Polen?", "was ist die hauptstadt von polen"),
    ("Erkläre mir Fotosynthese", "Erkläre mir bitte Fotosynthese!"),
    ("日本の首都は何ですか", "日本の首都は何ですか？"),
    ("中国的首都是哪里？", "请问中国的首都是哪里"),
    # long
    (
        (
            "Write a Python function that takes a list of integers and returns a new list "
            "that contains only the even ones."
            " Keep the order, add type hints and a docstring, and do not use any third-party library."
        ),
        (
            "Please write a Python function that takes a list of integers and returns a new "
            "list which contains only the "
            "even ones. Keep the order; add type hints and a doc string and don't use any third party library. Thanks!"
        ),
    ),
    (
        (
            "I run a small online shop for handmade candles. Sales dropped after the summer "
            "and I have little money for "
            "advertising. Suggest five cheap ways to reach new customers and explain each of them in two sentences."
        ),
        (
            "i run a small online shop for handmade candles, sales droped after the summer and i have little money for "
            "advertizing. suggest five cheap ways to reach new custommers and explain each of them in two sentences"
        ),
    ),
]

NEAR_CHECKING: list[Pair] = [
    ("Who painted the Mona Lisa?", "who painted the mona lisa"),
    ("Who painted the Mona Lisa?", "Who painted the Mona Lisa ?"),
    ("What is machine learning?", "What is machine-learning?"),
    ("Tell me a joke", "tell me a joke!!!"),
    ("Tell me a joke about lawyers", "Tell me a joke about lawyers :"),
    ("Convert 10 miles to kilometres", "Convert 25 miles to kilometres."),
    ("What are the symptoms of the flu?", "What are the symptoms of the “flu”?"),
    ("How far is the Moon?", "How far is the moon…"),
    ("Write an essay on climate change", "Write an essay on climate change (please)."),
    ("Write an essay on climate change", "Please, write an essay on climate change"),
    ("Write an essay on climate change", "Write an essay on climate change for me"),
    ("Write an essay on climate change", "Hi, write an essay on climate change"),
    ("Give an example of irony", "Could you give me an example of irony?"),
    ("Give an example of irony", "Can you please give an example of irony"),
    ("Fix the grammar of this sentence: he go home", "Please fix the grammar of this sentence: he go home"),
    ("Fix the grammar of this sentence: he go home", "fix the grammar of this sentence - 'He go home.'"),
    ("What year did the Titanic sink?", "Can you tell me what year the Titanic sank in?"),
    ("What year did the Titanic sink?", "What year did the Titanic sink? Thanks in advance!"),
    ("How do airplanes fly?", "How does an airplane fly?"),
    ("How do airplanes fly?", "how do airplanes fly, exactly?"),
    ("Explain blockchain to a child", "Explain blockchain to a child please"),
    ("Explain blockchain to a child", "Kindly explain blockchain to a child."),
    ("Explain blockchain to a child", "Would you mind explaining blockchain to a child?"),
    ("What is the meaning of life?", "what's the meaning of life"),
    ("What is the meaning of life?", "Whats the meaning of life?"),
    ("I can't sleep. What should I do?", "I cannot sleep. What should I do?"),
    ("I can't sleep. What should I do?", "i cant sleep, what should i do"),
    ("Is it true that bees do not sleep?", "Is it true that bees don't sleep?"),
    ("How do I center a div in CSS?", "How do I centre a div in CSS?"),
    ("What is the best programming language?", "What is the best programing language?"),
    ("What is the best programming language?", "What is the best programming langauge"),
    ("Describe the architecture of a transformer", "Describe the architecure of a transformer"),
    ("Who was the first president of Brazil?", "Who was the first presidant of Brazil?"),
    ("Name the largest ocean", "Name the largset ocean"),
    ("How do I cook spaghetti?", "How do I cook spagetti?"),
    ("Write a regular expression for email addresses", "Write a regular expression for email adresses"),
    ("Compare Mercury and Venus", "Compare mercury and venus."),
    ("What's a good birthday present?", "What is a good birthday present?"),
    ("List advantages of electric cars", "List the advantages of electric cars."),
    ("List advantages of electric cars", "List the advantage of an electric car"),
    ("Translate to German: I am hungry", 'Translate to German: "I\'m hungry"'),
    ("Translate to German: I am hungry", "translate to german: i am hungry"),
    ("With SQL, how can I join two tables?", "How can I join two tables with SQL?"),
    ("Write, in French, a letter to the mayor", "Write a letter to the mayor in French"),
    ("What is the boiling point of water at 2000 m?", "What is the boiling point of water at 3000 m?"),
    ("Recommend some books about the Roman Empire", "Recommend books about the Roman empire"),
    ("What was the cause of World War 1?", "What were the causes of World War 1?"),
    ("How is glass made?", "How's glass made?"),
    ("Define 'ubiquitous'", "Define ubiquitous."),
    ("How can I organise my time?", "How can I organize my time?"),
    ("Which favourite dishes do Italians have?", "Which favorite dishes do Italians have?"),
    ("Quelle est la capitale de l'Italie ?", "quelle est la capitale de l'italie"),
    ("Quelle est la capitale de l'Italie ?", "Quelle est la capitale de l'Italie, s'il te plaît ?"),
    ("Schreibe ein Gedicht über den Herbst", "Bitte schreibe ein Gedicht über den Herbst."),
    ("¿Cómo se hace una paella?", "Como se hace una paella, por favor"),
    ("请解释一下量子力学", "解释一下量子力学。"),
    ("Что такое энтропия?", "что такое энтропия"),
    ("def add(a, b):\n    return", "def add(a,b):\n\treturn"),
    ("Give me 3 tips for a job interview", "Give me three tips for a job interview"),
    (
        (
            "Our team of six engineers wants to move a web application with two million "
            "lines of Java from one data centre "
            "to the cloud. List the most important risks, and propose an order of steps that keeps the service running."
        ),
        (
            "Our team of 6 engineers wants to move a web application with two million lines "
            "of Java from one data center "
            "to the cloud. Please list the most important risks and propose an order of steps that keeps the service "
            "running!"
        ),
    ),
    (
        (
            "Rewrite the following e-mail so that it sounds friendlier: Dear Mr Jones, your invoice of March is still "
            "unpaid. Pay within seven days or we will stop the delivery. Regards, the accounts department."
        ),
        (
            "Can you rewrite the following e-mail so that it sounds friendlyer? Dear Mr. "
            "Jones, your invoice of March is "
            "still unpaid. Pay within seven days or we will stop the delivery. Regards, The Accounts Department"
        ),
    ),
]


def _every(template: str, values: str) -> list[Pair]:
    """All pairs of a template's prompts; `values` with a bar between them."""
    filled = [template.format(value) for value in values.split("|")]
    return [(one, other) for i, one in enumerate(filled) for other in filled[i + 1 :]]


_SYSTEM = (
    "You are the assistant of an insurance company. Answer politely, in at most three sentences, and never promise a "
    "payment. Ask for the number of the policy where it is missing. The customer writes: {}"
)
_DOCUMENT = (
    "The Danube rises in the Black Forest and flows through ten countries to the Black Sea. It is 2,850 km long, "
    "carries more water than any other river of the European Union, and has been a border and a trade route since "
    "Roman times. Its delta is home to more than three hundred species of birds.\n\n{}"
)

DIFFERENT_TUNING: list[Pair] = [
    *_every("What is the capital of {}?", "France|Spain|Austria|Australia|Mali|Malawi|Iran|Iraq|Niger|Nigeria"),
    *_every("Write a Python function that {} a list", "sorts|reverses|shuffles|flattens|copies|splits"),
    *_every("Translate '{}' to French", "house|horse|good morning|good night|I love you|I miss you"),
    *_every("Explain {} in one sentence", "gravity|inertia|DNA|RNA|recursion|iteration|merge sort|heap sort"),
    *_every("What does the operator {} do in C?", "*|/|%|&|+|-"),
    *_every("How do I print text in {}?", "C|C++|C#|Java|JavaScript|R"),
    *_every("{} is the train late?", "Why|How|When|Where"),
    *_every("What is the {} of 12 and 30?", "sum|product|greatest common divisor|least common multiple"),
    *_every("{} two sorted arrays", "Merge|Compare|Swap|Print"),
    *_every("请把“{}”翻译成英文", "苹果|香蕉|水"),
    *_every("{}の首都は何ですか", "日本|韓国|タイ|フランス|ドイツ"),
    *_every("Convert {}", "euros to dollars|dollars to euros|miles to feet|feet to miles"),
    *_every(_SYSTEM, "where is my money?|how do I cancel?|my car was stolen|can I change my address?"),
    *_every(_DOCUMENT, "How long is the river?|Where does it rise?|Which birds live there?|Who used it as a border?"),
    ("Is Python faster than Java?", "Is Java faster than Python?"),
    ("Write a function that adds two numbers", "Write a function that adds two strings"),
    ("Do vaccines cause autism?", "Do vaccines prevent autism?"),
]

DIFFERENT_CHECKING: list[Pair] = [
    *_every("Who was {}?", "Napoleon|Nelson|Newton|Einstein|Marie Curie|Pierre Curie|Darwin|Dante"),
    *_every("Give me a recipe for {}", "pancakes|waffles|butter chicken|butternut soup|tomato soup|potato soup"),
    *_every("Write a poem about {}", "autumn|spring|the sea|the sky|love|loss|a mouse|a moose"),
    *_every("How do you say '{}' in Japanese?", "hello|cat|dog|water|waiter|thank you very much|see you"),
    *_every("What is the {} of a circle?", "area|radius|diameter|circumference|centre"),
    *_every("In {}, how do I read a file?", "Python|Perl|PHP|Ruby|Rust|Go|Scala|Swift"),
    *_every("Is {} a good investment?", "gold|silver|oil|Bitcoin|real estate|Apple"),
    *_every("What is the population of {}?", "Sweden|Switzerland|Slovakia|Slovenia|Guinea|Guyana|Dominica"),
    *_every("Summarise the plot of {}", "Hamlet|Macbeth|Othello|King Lear|Emma|Dune"),
    *_every("Write a SQL query that {} all customers", "counts|deletes|lists|updates"),
    *_every("{} the following sentence: the cat sat on the mat", "Translate|Rewrite|Shorten|Negate|Criticise"),
    *_every("def {}(self, other):\n    ", "__add__|__sub__|__mul__|merge|equals"),
    *_every("I have a headache since {}. What should I do?", "yesterday|last week|my accident|I quit coffee"),
    *_every("Wie weit ist es von Berlin nach {}?", "Hamburg|Wien|Prag|Paris|Rom"),
    *_every(
        "You are an experienced reviewer of code. Look at the following function, name every bug that you find, say "
        "how bad each of them is, and propose a mended version with tests: {}",
        "def mean(xs): return sum(xs) / len(xs)|def last(xs): return xs[len(xs)]|def is_even(n): return n % 2|"
        "def greet(name): print('hello' + name)",
    ),
    *_every(
        "Classify the sentiment of this review as positive, negative or neutral, and answer with one word only. "
        "Review: {}",
        "I loved it|I hated it|It was fine|The battery died|The battery lasts for days|Great screen, poor sound",
    ),
    ("What is the distance from Paris to Rome?", "What is the distance from Rome to Berlin?"),
    ("Why do cats like boxes?", "Why do cats not like boxes?"),
    ("Can dogs eat grapes?", "Can dogs eat apples?"),
    ("Explain the difference between TCP and UDP", "Explain the difference between TCP and IP"),
    ("Write a story that ends happily", "Write a story that ends badly"),
]
