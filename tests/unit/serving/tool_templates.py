"""Model folders whose chat templates take tools, in the styles of well-known families."""

import json
from pathlib import Path

from pipeline.models.chat.renderer import Chat
from tests.unit.model_folders import make_model_folder

# As Qwen 2.5 and Hermes have it.
HERMES = (
    "{%- if tools %}{{- '<|im_start|>system\n# Tools\n<tools>' }}{%- for tool in tools %}"
    "{{- '\n' }}{{- tool | tojson }}{%- endfor %}{{- '\n</tools><|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message.role == 'assistant' and message.tool_calls %}"
    "{{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\n' + message.content }}"
    "{%- endif %}{%- for call in message.tool_calls %}{%- set call = call.function %}"
    '{{- \'\n<tool_call>\n{"name": "\' }}{{- call.name }}{{- \'", "arguments": \' }}'
    "{{- call.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response>' }}"
    "{{- '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# As Llama 3.1 has it: one call, nothing around it, its arguments called parameters.
LLAMA = (
    "{{- bos_token }}{%- if tools %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|eot_id|>' }}{%- endif %}"
    "{%- for message in messages %}{%- if message.tool_calls %}"
    "{%- if message.tool_calls | length != 1 %}{{- raise_exception('one call only') }}{%- endif %}"
    "{%- set call = message.tool_calls[0].function %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    '{{- \'{"name": "\' + call.name + \'", "parameters": \' }}{{- call.arguments | tojson }}'
    "{{- '}<|eot_id|>' }}{%- else %}"
    "{%- set role = 'ipython' if message.role == 'tool' else message.role %}"
    "{{- '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + message.content | trim }}"
    "{{- '<|eot_id|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
# As Mistral 7B v0.3 has it: a list behind a control token, ids of nine characters.
MISTRAL = (
    "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'user' %}"
    "{%- if tools and loop.index0 == 0 %}{{- '[AVAILABLE_TOOLS] ' + (tools | tojson) }}"
    "{{- '[/AVAILABLE_TOOLS]' }}{%- endif %}{{- '[INST] ' + message.content + '[/INST]' }}"
    "{%- elif message.tool_calls %}{{- '[TOOL_CALLS] [' }}{%- for call in message.tool_calls %}"
    "{%- if call.id | length != 9 %}{{- raise_exception('ids have 9 characters') }}{%- endif %}"
    "{%- set out = call.function | tojson %}{{- out[:-1] + ', \"id\": \"' + call.id + '\"}' }}"
    "{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' + eos_token }}"
    "{%- elif message.role == 'tool' %}"
    "{{- '[TOOL_RESULTS] ' + message.content + '[/TOOL_RESULTS]' }}"
    "{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}{%- endfor %}"
)
FAMILIES = {
    "hermes": ("chatml", HERMES, []),
    "llama": ("llama3", LLAMA, []),
    "mistral": (
        *("mistral", MISTRAL),
        ["[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"],
    ),
}


def tool_chat(folder: Path, name: str) -> Chat:
    family, template, control = FAMILIES[name]
    make_model_folder(folder, family, template)
    file = folder / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"additional_special_tokens": control}
    if name == "hermes":  # tokens of their own, though no control tokens
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        config["added_tokens_decoder"] = {
            str(1000 + i): {"content": text, "special": False, **plain}
            for i, text in enumerate(["<tool_call>", "</tool_call>"])
        }
    file.write_text(json.dumps(config))
    return Chat.load(folder)
