"""Tiny random vision-language models of each family, made offline: `make("qwen3_vl") -> (model, processor)`.

The tokenizer is a byte-level BPE trained on a paragraph; special tokens and turn formats follow each family's documentation,
in templates of our own. Processors are those of PIL, without their video half (which needs torchvision).
"""

import functools

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing

from trace_vlm.model.families.any import without_video

CORPUS = ["Find free space left of the red mug on the table. Answer with a list of tuples [(0.25, 0.50), (1, 2)].\n\n"
          "Identify reference object. Define target area. Determine goal subtype. Generate output. Final Answer: "
          "user assistant system User Assistant USER ASSISTANT You are a helpful assistant."] * 4  # fmt: skip


def chat_template(begin, image, end, generation, first=""):
    """`begin`, pictures and texts, `end` for each turn; ROLE is the turn's role. `generation` opens an answer."""
    content = (
        "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}" + image + "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    )
    begin = begin.replace("ROLE", "{{ message.role }}")
    return (f"{first}{{% for message in messages %}}{begin}{content}{end}{{% endfor %}}"
            f"{{% if add_generation_prompt %}}{generation}{{% endif %}}")  # fmt: skip


VISION = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN = chat_template("<|im_start|>ROLE\n", VISION, "<|im_end|>\n", "<|im_start|>assistant\n")
QWEN25 = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" + QWEN
# An empty block of thought opens the last answer when thinking is off, and no earlier one.
THINK = "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
QWEN35 = chat_template(
    "<|im_start|>ROLE\n{% if message.role == 'assistant' and loop.last %}" + THINK + "{% endif %}",
    VISION, "<|im_end|>\n", "<|im_start|>assistant\n" + THINK)  # fmt: skip
COLON = "{% if message.content is not string and message.content[0].type == 'image' %}:{% else %}: {% endif %}"
SMOL = chat_template("{{ message.role | capitalize }}" + COLON, "<image>", "<end_of_utterance>\n", "Assistant:",
                     first="<|im_start|>")  # fmt: skip
GEMMA = chat_template("<start_of_turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n", "<start_of_image>",
                      "<end_of_turn>\n", "<start_of_turn>model\n", first="{{ bos_token }}")  # fmt: skip
INTERN = chat_template("<|im_start|>ROLE\n", "<IMG_CONTEXT>\n", "<|im_end|>\n", "<|im_start|>assistant\n")
# A blank after the role, where the generation prompt has a new line; and answers that never end.
ONEVISION = chat_template("<|im_start|>ROLE ", "<image>\n", "<|im_end|>", "<|im_start|>assistant\n")
NEXT = chat_template("{{ '[INST] ' if message.role == 'user' else ' ' }}", "<image>\n",
                     "{{ ' [/INST]' if message.role == 'user' else '' }}", "")  # fmt: skip


@functools.cache
def byte_pairs():
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return made.to_str()


def tokenizer(eos, special=(), bos=None, adds_bos=False, **named):
    """`named`: the tokens that the processor asks the tokenizer for, `image="<image>"` for `tokenizer.image_token`."""
    made = Tokenizer.from_str(byte_pairs())
    made.add_special_tokens(["<pad>", eos, *special])  # those given to the constructor below as a list are not added
    if adds_bos:
        made.add_special_tokens([bos])
        made.post_processor = TemplateProcessing(f"{bos} $A", f"{bos} $A $B", [(bos, made.token_to_id(bos))])
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=bos, eos_token=eos, pad_token="<pad>", padding_side="left",
        extra_special_tokens={f"{name}_token": token for name, token in named.items()} or None,
        model_input_names=["input_ids", "attention_mask"])  # fmt: skip


TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 4096, "bos_token_id": None}  # fmt: skip
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
QWEN_TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "spatial_merge_size": 2,
              "temporal_patch_size": 2, "out_hidden_size": 64}  # fmt: skip
PIXELS = {"size": {"height": 56, "width": 56}, "do_resize": True}
TILES = [[56, 56], [56, 112], [112, 56], [112, 112], [56, 168], [168, 56]]


def ids(tok, **names):
    return {key: tok.convert_tokens_to_ids(token) for key, token in names.items()}


def text(tok, **more):
    return TEXT | {"vocab_size": len(tok), "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id} | more


def qwen(config, processor, tower, settings, pixels, template):
    special = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<think>",
               "</think>", "<|endoftext|>"]  # fmt: skip
    tok = tokenizer("<|im_end|>", special)
    tokens = ids(tok, image_token_id="<|image_pad|>", video_token_id="<|video_pad|>",
                 vision_start_token_id="<|vision_start|>", vision_end_token_id="<|vision_end|>")  # fmt: skip
    config = config(text_config=text(tok, **settings), vision_config=QWEN_TOWER | tower, **tokens)
    return config, without_video(processor)(pixels, tok, video_processor=None, chat_template=template)


def qwen2_5_vl():
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    tower = {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
    pixels = hf.Qwen2VLImageProcessorPil(size={"shortest_edge": 28**2 * 4, "longest_edge": 28**2 * 24})
    return qwen(hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLProcessor, tower, {"rope_parameters": rope}, pixels, QWEN25)


def pixels_of_qwen3():
    return hf.Qwen2VLImageProcessorPil(patch_size=16, size={"shortest_edge": 32**2 * 4, "longest_edge": 32**2 * 24},
                                       image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip


def qwen3_vl():
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True, "rope_theta": 10000.0}
    tower = {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
    settings = {"head_dim": 16, "rope_parameters": rope}
    return qwen(hf.Qwen3VLConfig, hf.Qwen3VLProcessor, tower, settings, pixels_of_qwen3(), QWEN)


def qwen3_5():
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True, "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5}  # fmt: skip
    settings = {"head_dim": 16, "rope_parameters": rope, "layer_types": ["linear_attention", "full_attention"],
                "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16,
                "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4}  # fmt: skip
    tower = {"patch_size": 16, "num_position_embeddings": 64}
    return qwen(hf.Qwen3_5Config, hf.Qwen3VLProcessor, tower, settings, pixels_of_qwen3(), QWEN35)


def smolvlm():
    special = ["<fake_token_around_image>", "<image>", "<global-img>", "<|im_start|>", "<video>"]
    special += [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    tok = tokenizer("<end_of_utterance>", special, bos="<|im_start|>", image="<image>", video="<video>",
                    fake_image="<fake_token_around_image>", global_image="<global-img>",
                    end_of_utterance="<end_of_utterance>")  # fmt: skip
    config = hf.SmolVLMConfig(
        text_config=text(tok, model_type="llama"), vision_config=TOWER | {"image_size": 64, "patch_size": 16},
        scale_factor=2, image_token_id=tok.convert_tokens_to_ids("<image>"), pad_token_id=tok.pad_token_id)  # fmt: skip
    pixels = hf.SmolVLMImageProcessorPil(size={"longest_edge": 128}, max_image_size={"longest_edge": 64})
    processor = without_video(hf.SmolVLMProcessor)
    return config, processor(pixels, tok, video_processor=None, image_seq_len=4, chat_template=SMOL)


def gemma3():
    tok = tokenizer("<end_of_turn>", ["<start_of_turn>"], bos="<bos>", adds_bos=True, boi="<start_of_image>",
                    eoi="<end_of_image>", image="<image_soft_token>")  # fmt: skip
    settings = {"head_dim": 16, "sliding_window": 64, "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
    tokens = ids(tok, boi_token_index="<start_of_image>", eoi_token_index="<end_of_image>",
                 image_token_index="<image_soft_token>", image_token_id="<image_soft_token>")  # fmt: skip
    tower = TOWER | {"image_size": 56, "patch_size": 14}
    config = hf.Gemma3Config(text_config=text(tok, **settings), vision_config=tower, mm_tokens_per_image=4, **tokens)
    return config, hf.Gemma3Processor(
        hf.Gemma3ImageProcessorPil(**PIXELS), tok, chat_template=GEMMA, image_seq_length=4
    )


def gemma4():
    tokens = {"image": "<|image|>", "boi": "<|image>", "eoi": "<image|>", "audio": "<|audio|>", "boa": "<|audio>",
              "eoa": "<audio|>"}  # fmt: skip
    tok = tokenizer("<turn|>", ["<|turn>", "<|video|>"], bos="<bos>", adds_bos=True, **tokens)
    settings = {"head_dim": 16, "global_head_dim": 16, "hidden_size_per_layer_input": 0, "sliding_window": 64,
                "layer_types": ["sliding_attention", "full_attention"], "use_bidirectional_attention": "vision"}  # fmt: skip
    tower = TOWER | {"num_key_value_heads": 2, "head_dim": 16, "patch_size": 8, "pooling_kernel_size": 2}
    numbers = ids(tok, video_token_id="<|video|>", **{f"{name}_token_id": token for name, token in tokens.items()})
    config = hf.Gemma4Config(text_config=text(tok, **settings), vision_config=tower, audio_config=None, **numbers)
    pixels = hf.Gemma4ImageProcessorPil(patch_size=8, max_soft_tokens=70, pooling_kernel_size=2)
    template = chat_template("<|turn>{{ 'model' if message.role == 'assistant' else 'user' }}\n", "<|image|>",
                             "<turn|>\n", "<|turn>model\n", first="{{ bos_token }}")  # fmt: skip
    parts = (hf.Gemma4AudioFeatureExtractor(), pixels, tok, None)
    return config, without_video(hf.Gemma4Processor)(*parts, chat_template=template)


def internvl():
    tok = tokenizer("<|im_end|>", ["<|im_start|>"], start_image="<img>", end_image="</img>",
                    context_image="<IMG_CONTEXT>", video="<video>")  # fmt: skip
    config = hf.InternVLConfig(
        text_config=text(tok, model_type="qwen2"), image_seq_length=4, downsample_ratio=0.5,
        vision_config=TOWER | {"image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"))  # fmt: skip
    pixels = hf.GotOcr2ImageProcessorPil(crop_to_patches=True, max_patches=6, min_patches=1, **PIXELS)
    processor = without_video(hf.InternVLProcessor)
    return config, processor(pixels, tok, video_processor=None, image_seq_length=4, chat_template=INTERN)


def llava_onevision():
    tok = tokenizer("<|im_end|>", ["<|im_start|>", "<image>", "<video>"])
    config = hf.LlavaOnevisionConfig(
        text_config=text(tok, model_type="qwen2"), image_grid_pinpoints=TILES, vision_feature_select_strategy="full",
        vision_feature_layer=-1, vision_aspect_ratio="anyres_max_9",
        vision_config=TOWER | {"image_size": 56, "patch_size": 14, "model_type": "siglip_vision_model"},
        **ids(tok, image_token_index="<image>", video_token_index="<video>"))  # fmt: skip
    pixels = hf.LlavaOnevisionImageProcessorPil(image_grid_pinpoints=TILES, **PIXELS)
    processor = without_video(hf.LlavaOnevisionProcessor)
    return config, processor(pixels, tok, video_processor=None, num_image_tokens=16,
                             vision_feature_select_strategy="full", chat_template=ONEVISION)  # fmt: skip


def llava_next():
    tok = tokenizer("</s>", ["<image>"], bos="<s>", adds_bos=True)
    config = hf.LlavaNextConfig(
        text_config=text(tok, model_type="mistral"), image_grid_pinpoints=TILES,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        vision_config=TOWER | {"image_size": 56, "patch_size": 14, "model_type": "clip_vision_model"})  # fmt: skip
    pixels = hf.LlavaNextImageProcessorPil(
        image_grid_pinpoints=TILES, size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56})  # fmt: skip
    return config, hf.LlavaNextProcessor(pixels, tok, patch_size=14, vision_feature_select_strategy="default",
                                         num_additional_image_tokens=1, chat_template=NEXT)  # fmt: skip


MADE = (qwen2_5_vl, qwen3_vl, qwen3_5, smolvlm, gemma3, gemma4, internvl, llava_onevision, llava_next)
FAMILIES = {function.__name__: function for function in MADE}


def make(family, seed=0):
    config, processor = FAMILIES[family]()
    torch.manual_seed(seed)
    model = hf.AutoModelForImageTextToText.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma's starts as zeros: it would see nothing
            torch.nn.init.normal_(parameter.data, std=0.1)
    tok = processor.tokenizer
    model.generation_config = hf.GenerationConfig(eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    return model, processor


def save(family, folder):
    model, processor = make(family)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
