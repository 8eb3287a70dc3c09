"""Chat templates in the style of published families, written for these tests.

Each does what makes its family hard: a system turn of its own, a date in it, thoughts that are left out of history,
no system role, markup without roles, a system message that stands in the last user turn.
"""

from __future__ import annotations

# ChatML that puts its own system turn where none is given.
CHATML_DEFAULT_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}{{ '<|im_start|>system\nYou are a kind machine.<|im_end|>\n' }}"
    "{%- endif -%}{%- for m in messages -%}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)
# A system turn that always stands there, with dates, and holds the system message where there is one.
DATED_SYSTEM = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set said = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nKnowledge ends: December 2023\n' }}"
    "{{- 'Today: ' + date_string + '\n\n' }}"
    "{{- said + '<|eot_id|>' }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
# Thoughts are left out of all turns but those behind the last question, where an empty one is put in; they can be
# switched off for the reply that is asked for.
THINKING = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages -%}{%- if m['role'] == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}{%- for m in messages -%}"
    "{%- if m['role'] == 'assistant' -%}{%- set said = m['content'].split('</think>')[-1].lstrip('\n') -%}"
    "{%- if loop.index0 > ns.last -%}{{ '<|im_start|>assistant\n<think>\n\n</think>\n\n' + said + '<|im_end|>\n' }}"
    "{%- else -%}{{ '<|im_start|>assistant\n' + said + '<|im_end|>\n' }}{%- endif -%}{%- else -%}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
# No system role, turns that must alternate, the assistant is called model.
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate\nuser/assistant') }}{% endif %}"
    "{{ '<start_of_turn>' + m['role'].replace('assistant', 'model') + '\n' + m['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Brackets instead of roles, nothing that asks for the reply, and the system message in the last user turn.
BRACKETS = (
    "{%- if messages[0]['role'] == 'system' %}{%- set said = messages[0]['content'] %}{%- set chat = messages[1:] %}"
    "{%- else %}{%- set chat = messages %}{%- endif %}{{- bos_token }}{%- for m in chat %}{%- if m['role'] == 'user' %}"
    "{%- if loop.last and said is defined %}{{- '[INST] ' + said + '\n\n' + m['content'] + '[/INST]' }}"
    "{%- else %}{{- '[INST] ' + m['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + m['content'] | trim + eos_token }}{%- endif %}{%- endfor %}"
)
FAMILIES = {
    "chatml, default system": CHATML_DEFAULT_SYSTEM,
    "dated system": DATED_SYSTEM,
    "thinking": THINKING,
    "no system": NO_SYSTEM,
    "brackets": BRACKETS,
}
