"""Makes the tiny image classifiers of this folder: random weights in Hugging Face format and what transformers computes.

    python3 make_classifiers.py bus.jpg [NAME…]        needs: torch, transformers, torchvision, pillow, numpy

Each folder holds config.json, preprocessor_config.json, model.safetensors, expected.npy: logits `[2, classes]` in float32 of
two pictures of noise, computed in float64, and pixels.npy: what the model's own processor makes of bus.jpg (of the package
ultralytics), every n-th value. answers.json is what transformers' pipeline says of logits, by problem type. Without names all
are made.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers as t
from PIL import Image

HERE = pathlib.Path(__file__).parent
LABELS = dict(id2label={i: name for i, name in enumerate(["cat", "dog", "owl", "robot", "tram"])},
              label2id={name: i for i, name in enumerate(["cat", "dog", "owl", "robot", "tram"])})


def noise(count, seed=7):
    """SplitMix64, uniform in [-1, 1): `Tensor::seeded`."""
    values, mask = np.empty(count, np.float32), (1 << 64) - 1
    state = seed
    for i in range(count):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
        values[i] = np.float32(z >> 40) / np.float32(1 << 24) * np.float32(2) - np.float32(1)
    return values


def processor(size, **more):
    return {"do_resize": True, "size": size, "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255,
            "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], **more}


IMAGENET = dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
square = lambda n: {"height": n, "width": n}
plain = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40, image_size=32, patch_size=8,
             **LABELS)
swin = dict(image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4, **LABELS)
CASES = {
    "vit": (t.ViTForImageClassification, t.ViTConfig(**plain),
            processor(square(32), image_processor_type="ViTImageProcessor")),
    "vit-no-bias": (t.ViTForImageClassification, t.ViTConfig(**{**plain, "qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"}),
                    processor(32, feature_extractor_type="ViTFeatureExtractor")),
    "deit": (t.DeiTForImageClassification, t.DeiTConfig(**plain),
             processor(square(36), resample=3, do_center_crop=True, crop_size=square(32),
                       image_processor_type="DeiTImageProcessor", **IMAGENET)),
    "deit-distilled": (t.DeiTForImageClassificationWithTeacher, t.DeiTConfig(**plain),
                       processor(36, resample=3, do_center_crop=True, crop_size=32,
                                 feature_extractor_type="DeiTFeatureExtractor", **IMAGENET)),
    "beit": (t.BeitForImageClassification, t.BeitConfig(use_relative_position_bias=True, layer_scale_init_value=0.4, **plain),
             processor(square(36), do_center_crop=True, crop_size=square(32), image_processor_type="BeitImageProcessor")),
    "beit-shared": (t.BeitForImageClassification,
                    t.BeitConfig(use_shared_relative_position_bias=True, use_absolute_position_embeddings=True,
                                 use_mean_pooling=False, layer_scale_init_value=0.0, **plain),
                    processor(square(32), image_processor_type="BeitImageProcessor")),
    "swin": (t.SwinForImageClassification, t.SwinConfig(**swin),
             processor(square(32), resample=3, image_processor_type="ViTImageProcessor", **IMAGENET)),
    "swin-padded": (t.SwinForImageClassification,
                    t.SwinConfig(**{**swin, "image_size": 36, "use_absolute_embeddings": True}),
                    processor(square(36), image_processor_type="ViTImageProcessor")),
    "convnext": (t.ConvNextForImageClassification,
                 t.ConvNextConfig(image_size=32, hidden_sizes=[12, 16, 20, 24], depths=[1, 1, 2, 1],
                                  layer_scale_init_value=0.5, **LABELS),
                 processor({"shortest_edge": 32}, crop_pct=0.875, image_processor_type="ConvNextImageProcessor", resample=3,
                           **IMAGENET)),
    "resnet": (t.ResNetForImageClassification,
               t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1], **LABELS),
               processor({"shortest_edge": 32}, crop_pct=0.875, image_processor_type="ConvNextImageProcessor", **IMAGENET)),
    "resnet-basic": (t.ResNetForImageClassification,
                     t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic",
                                    downsample_in_first_stage=True, **LABELS),
                     processor({"shortest_edge": 384}, crop_pct=0.875, image_processor_type="ConvNextImageProcessor",
                               resample=2, **IMAGENET)),
    # Within a block it is ReLU all the same.
    "resnet-silu": (t.ResNetForImageClassification,
                    t.ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[2, 1], hidden_act="silu", **LABELS),
                    processor({"shortest_edge": 32}, crop_pct=0.875, image_processor_type="ConvNextImageProcessor",
                              **IMAGENET)),
    "resnet-basic-gelu": (t.ResNetForImageClassification,
                          t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic",
                                         hidden_act="gelu", **LABELS),
                          processor({"shortest_edge": 32}, crop_pct=0.875, image_processor_type="ConvNextImageProcessor",
                                    **IMAGENET)),
}


def answers():
    """What the pipeline makes of logits: [{problem_type, labels, logits, answer: [[label, score], …]}]."""
    cases = []
    for problem, logits in [(None, [0.5, -1.0, 2.0]), ("single_label_classification", [0.5, -1.0, 2.0]),
                            ("multi_label_classification", [0.5, -1.0, 2.0]), ("regression", [0.0061]),
                            ("regression", [0.5, -1.0, 2.0]), (None, [0.25]), ("multi_label_classification", [-0.25])]:
        names = ["cat", "dog", "owl"][:len(logits)]
        config = t.ViTConfig(**{**plain, "num_hidden_layers": 1}, problem_type=problem)
        config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
        pipeline = t.ImageClassificationPipeline(t.ViTForImageClassification(config), image_processor=t.ViTImageProcessor())
        said = pipeline.postprocess({"logits": torch.tensor([logits])})
        cases.append({"problem_type": problem, "labels": names, "logits": logits,
                      "answer": [[one["label"], one["score"]] for one in said]})
    return cases


def main():
    wanted = sys.argv[2:] or [*CASES, "answers"]
    if "answers" in wanted:
        (HERE / "answers.json").write_text("[\n " + ",\n ".join(map(json.dumps, answers())) + "\n]\n")
    for name, (kind, config, preprocessor) in CASES.items():
        if name not in wanted:
            continue
        torch.manual_seed(len(name))
        model = kind(config).eval()
        with torch.no_grad():
            for key, value in model.state_dict().items():
                if value.dtype != torch.float32:
                    continue
                # Statistics and scales away from their defaults, so that a wrong one shows.
                if key.endswith(("running_var",)):
                    value.copy_(torch.rand_like(value) + 0.5)
                elif value.dim() == 1 and key.endswith("weight"):
                    value.copy_(1 + 0.3 * torch.randn_like(value))
                elif value.dim() <= 1 or "embedding" in key or "token" in key or "table" in key:
                    value.copy_(0.3 * torch.randn_like(value))
                else:
                    value.copy_(torch.randn_like(value) / np.sqrt(value[0].numel()))
        model.half().float()  # what float16 holds, so that the files may be float16
        size = getattr(config, "image_size", 32)
        pixels = torch.from_numpy(noise(2 * 3 * size * size).reshape(2, 3, size, size))
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        with torch.no_grad():
            logits = model.double()(pixel_values=pixels.double()).logits
        np.save(folder / "expected.npy", logits.numpy().astype(np.float32))
        model.half().save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1))
        processor = t.AutoImageProcessor.from_pretrained(folder)
        pixels = processor(Image.open(sys.argv[1]), return_tensors="np")["pixel_values"].astype(np.float32).ravel()
        np.save(folder / "pixels.npy", pixels[::-(-pixels.size // 3072)])
        print(name, sum(p.numel() for p in model.parameters()), logits[0].tolist())


if __name__ == "__main__":
    main()
