"""Texts on which tokenizers have been seen to differ, and random ones of the same letters."""

import random

HAND_MADE = [
    "",
    " ",
    "\n",
    "\r\n\r\n",
    " \n \n  x",
    "a\tb\t\tc\t",
    "trailing spaces   ",
    "   leading",
    "it's IT'S we'll I'D they've 'sup ''s 's",
    "\u017ft '\u017f '\u017fo can'\u017f",
    "0123456789 1,234.5e-6 \u0661\u0662\u0663 \u2167 \u00bd \uff11\uff12",
    "cafe\u0301 caf\u00e9 \u212b \u1e9b\u0323 \u0344",
    "\u1100\u1161\u11a8 \uac01 \u1112\u1161\u11ab",
    "\u0915\u094d\u0937 \u0e33 \u0f71\u0f72",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 \U0001f1e9\U0001f1ea",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u300c\u5f15\u53f7\u300d\u2026\u2026",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3067\u3059\u3002",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd \u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "\u0085\u2028\u2029\ufeff\u200b\u00a0\u3000\u1680\u180e",
    "\x00\x01\x7f\x1b[0m",
    "\ud7ff\ue000\ufffd\uffff\U00010000\U0010fffd\U0010ffff",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<think>\n\n</think> <tool_call>{}</tool_call><|fim_prefix|><|repo_name|>",
    "<|im_end|><|im_end|> <|im_end|>\u0301 <|im_en d|> <|im_end|",
    "\u0338<|im_end|> \u226e|im_end|>",
    "https://example.org/a_b?c=%20d#e  user@host.de /etc/passwd C:\\dir\\file.txt",
    "def f(x):\n    if x:\n\t\treturn [i ** 2 for i in range(10)]  # \u00fcml\u00e4ut\n\n\n",
    "!!!!????....----====____****####" * 5,
    "a" * 5000,
    " " * 5000,
    "\n" * 5000,
    "ab " * 3000,
    "\u4e2d" * 3000,
    "9" * 3000,
    "\u0301" * 300,
]

LETTERS = [
    *"abzAZ09 \n\t\r.,'!_-<>|/\\\"",
    *"\u00e9\u00df\u0301\u0308\u0338\u212b\u017f\u0130",
    *"\u4f60\u597d\u9fff\u3002\uff0c\u3001\u3042\u30a2\uac00\u1100\u1161",
    *"\u0085\u2028\ufeff\u200d\u00a0\u3000\x00",
    *"\U0001f600\U0001f469\ufe0f\u0661\u2167",
    *("'s", "'S", "'ll", "  ", "\n\n", "\r\n", "<|im_end|>", "<|endoftext|>", "<think>", "<|", "|>"),
]


def random_texts(count, seed):
    rng = random.Random(seed)
    return ["".join(rng.choices(LETTERS, k=rng.randrange(1, 120))) for _ in range(count)]
