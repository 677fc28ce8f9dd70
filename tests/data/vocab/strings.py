"""Texts at which vocabularies part: what they are cut at, what they join, what they take for letters, digits, spaces."""

STRINGS = [
    "Zażółć gęślą jaźń! Pchnąć w tę łódź jeża lub ośm skrzyń fig. ŻÓŁW, Łódź, „cytat” – myślnik…",
    "W Szczebrzeszynie chrząszcz brzmi w trzcinie i Szczebrzeszyn z tego słynie.",
    "def f(x):\n" + " " * 40 + "return x\n" + " " * 17 + "y\n" + " " * 16 + "# koniec",
    "fn main() {\n\tif a {\n\t\tb();\n\t}\n}\n\n\n\n\t\t  \t x",
    "one\r\ntwo\r\n\r\n  three\rfour \r\n \n end\n",
    "👩‍👩‍👧‍👦 🇵🇱 👍🏽 ❤️ a👋b 1️⃣2️⃣ ☺️",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 2026-11-27 0x1F ½ ² ٣٤٥ १२३",
    "9" * 50 + " " + "12" * 11 + "a" + "7" * 7,
    "\x00\x01\x02\x1b[31m\x7f\x1f a\x0bb\x0cc\x85d",
    ["abcdefghij", 1000],
    ["A", 100],
    [" ", 300],
    ["\n", 60],
    "x" + " " * 300 + "y",
    "你好，世界。今天天气很好！日本語のテキスト、カタカナ。한국어 문장입니다. ㄅㄆㄇ ㄱㄴ 龥鿿",
    "مرحبا بالعالم، كيف حالك؟ ۔ १२ हिन्दी में पाठ। বাংলা",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง ລາວ ខ្មែរ",
    "It's I'M you'RE WE'VE he'll SHE'D don't O'Neil's 'S 'tis 'Twas l'été ’s’",
    "e\u0301te\u0301 Z\u0307o\u0301\u0142w a\u0328 \u0301x n\u0303",
    "a\u00a0b\u00a0\u00a0c \u2003d\u3000e\u200bf\ufeffg\u2028h",
    "http://example.com/path?q=1&r=2#frag user@host.pl C:\\Users\\x  ~/.cfg",
    "HelloWorld helloWORLD XMLHttpRequest iPhone ŁódźMiasto ABCdef aB Ab éÉ ÉÀé ǅungla ʰx ªº",
    "a+b=c; x<=y && z||w; $var = `cmd` ^ ~t | #!/bin/sh <div class=\"a\">&nbsp;</div>",
    "...!!!???--- ---- === ***bold*** __x__ (a) [b] {c} «d» “e” ‘f’ 、。！",
    " leading", "trailing ", "  two", "x  \n  y", "\n\n x", " \n", " ", "\t", "a", "",
    "<sentinel:12> IMGIMGABCZ <|im_start|> <s> [INST]",
    "Привет, мир! Ёжик. Γειά σου Κόσμε ἕξ. Բարեւ שלום עולם",
    "x²+y³≠∞ ∑∫√ €100 £5 ¥ 20°C 50% №5 §3 ™®©",
    "price:$1,234.56;(555)123-4567 v1.2.3rc4 3D 4K 1st a1b2c3",
    "¹²³ Ⅳ ⑤ 一二三 ߁߂ 𝟏𝟐 𐐀𐐨 𝒜𝓑 ሀ",
    "\u0378\ue000\U000f0000 \ufffd",
    "if (x)\n    y();\n  else\n        z();\n\n\n    // komentarz: łąka\n",
    "a/b//c///d\n/e .\n/ !\n\n?\r\n/",
    "\u017f '\u017f \u212a \u212b \ufb01 \u1e9e \u00df \u0130\u0131",
    "O'sullivan d'Artagnan L'DOR 'reset 'vers n'tx",
    ");\n);\n{\n}\n);\r\n}\n\n})\n",
    "zażółć<tool_call> gęślą<tool_call><|im_end|> jaźń<|im_end|>",
]


def text(string):
    return string if isinstance(string, str) else string[0] * string[1]


TEXTS = [text(string) for string in STRINGS]
