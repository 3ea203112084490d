"""Chat templates, right and wrong ones: what models ship, what does not end, and what raises."""

from __future__ import annotations

CHATML = (
    "{%- if messages[0]['role'] == 'system' %}{{ '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}\n"
    "{%- for message in messages %}\n"
    "    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}\n"
    "        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n"
    "    {%- elif message.role == 'assistant' %}\n"
    "        {{- '<|im_start|>assistant\\n' + message.content.split('</think>')[-1].lstrip('\\n') }}<|im_end|>\n\n"
    "    {%- endif %}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
TEMPLATES = {
    "ChatML": CHATML,
    "Llama 2": (
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
        "message['content'].strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + message['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "macros and namespaces": (
        "{%- macro turn(role, text='') -%}\n<{{ role }}>{{ text | trim }}</{{ role }}>\n{%- endmacro -%}\n"
        "{% set ns = namespace(count=0, last='') %}\n{% for m in messages %}\n"
        "{% set ns.count = ns.count + 1 %}{% set ns.last = m.role %}{{ turn(m.role, m.content) }}\n{% endfor %}\n"
        "{{ ns.count }} {{ ns.last }} {{ namespace(self=1).self }}"
    ),
    "JSON": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}{{ {'ü': '<&>'} | tojson(ensure_ascii=True) }}",
    "loop controls": (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ m.content }}"
        "{% if loop.index > 2 %}{% break %}{% endif %}{% endfor %}"
    ),
    "generation": (
        "{% set x = 1 %}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}\n"
        "  {% set x = 2 %}{{ m.content }}{{ x }}\n{% endgeneration %}\n"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}{{ x }}"
    ),
    "blocks and lines": (
        "  {% if true %}\n  a\n  {% endif %}\n{# said #}\nb\n\n{% for m in messages %}\n{{ m.role }}\n{% endfor %}\n"
    ),
    "dictionaries": (
        "{% set d = dict(a=1, b=2) %}{{ d.a }}{{ dict.fromkeys(['x', 'y'], 3) }}"
        "{% for k, v in d | dictsort %}{{ k }}{{ v }}{% endfor %}{{ d.get('z', 'none') }}{{ d is mapping }}"
    ),
    "what is undefined": (
        "[{{ nothing }}]{{ tools is none }}{{ documents is none }}{{ nothing is defined }}{{ enable_thinking }}"
    ),
    "filters and tests": (
        "{{ messages | map(attribute='role') | list | join(', ') }}{{ messages[0].content | upper }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ '%s and %d' | format('x', 3) }}"
        "{{ messages[-1].content[:3] }}{{ messages[::2] | length }}{{ cycler('a', 'b').next() }}"
        "{% set j = joiner() %}{{ j() }}{{ j() }}{{ 'ab' | replace('a', 'b') }}"
    ),
    "the year": "{{ strftime_now('%Y %%') }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ pad_token is defined }}",
}
"""By name; each uses other parts of the template language."""
MESSAGES = [
    {"role": "system", "content": "Be bold & <brief>.\n"},
    {"role": "user", "content": " What is `heapq`? ü 🙂 \n"},
    {"role": "assistant", "content": "<think>\nwell\n</think>\n\nA queue."},
    {"role": "user", "content": "{{ 7 * 7 }} {% raw %}"},
]
RAISING = {
    "{{ raise_exception('roles\nmust \x1b[2Jalternate') }}": "roles must [2Jalternate",
    "{% for": "unexpected 'end of template'",
    "{{ 1 / 0 }}": "ZeroDivisionError: division by zero",
    "{{ 'a' + 1 }}": "TypeError: ",
    "{{ [][3].x }}": "has no element 3",
    "{{ nothing.at.all }}": "'nothing' is undefined",
    "{{ {}.pop('x') }}": "access to attribute 'pop' of 'dict' object is unsafe",
    "{{ 'a'.encode('ascii').decode('utf-16') }}": "UnicodeDecodeError: ",
    "{{ 2.0 ** 5000 }}": "OverflowError: ",
    "{{ [1, 2] | first | list }}": "TypeError: ",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError: ",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}": "access to attribute '__class__' of 'str' object is unsafe",
    "{{ cycler.__init__.__globals__ }}": "access to attribute '__init__' of 'type' object is unsafe",
    "{{ dict.__call__.__self__ }}": "access to attribute '__call__' of '_Dict' object is unsafe",
    "{{ namespace(_secret=1) }}": "a namespace has no '_secret'",
    "{% set n = namespace() %}{% set n._x = 1 %}": "a namespace has no '_x'",
    "{% include '/etc/passwd' %}": "no loader for this environment",
    "{{ messages.append(1) }}": "access to attribute 'append' of 'list' object is unsafe",
    "{{ range(1000000) | list }}": "OverflowError: Range too big",
    "{{ 'x' | no_such_filter }}": "No filter named 'no_such_filter'",
    "{{ '\\N{x}' }}": "",
}
"""What a template raises, and a part of what is said of it."""
LOOPING = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a number": "{{ 10 ** (10 ** 10) }}",  # neither a signal's handler nor another thread gets a turn in it
}
