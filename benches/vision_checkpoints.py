"""Image classifiers of published sizes with random weights, in Hugging Face format: speed does not depend on the values.

usage: vision_checkpoints.py FOLDER [NAME...]

Writes FOLDER/NAME for vit-b, deit-s, beit-b, swin-t, convnext-t, resnet-50.
"""

import json
import pathlib
import sys

import torch
import transformers as t

PROCESSOR = {"do_resize": True, "size": {"height": 224, "width": 224}, "resample": 2, "do_rescale": True,
             "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CROPPED = {**PROCESSOR, **IMAGENET, "size": {"shortest_edge": 224}, "crop_pct": 0.875,
           "image_processor_type": "ConvNextImageProcessor"}
LABELS = {"num_labels": 1000}
MODELS = {
    "vit-b": (t.ViTForImageClassification, t.ViTConfig(**LABELS), {**PROCESSOR, "image_processor_type": "ViTImageProcessor"}),
    "deit-s": (t.DeiTForImageClassificationWithTeacher,
               t.DeiTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, **LABELS),
               {**PROCESSOR, **IMAGENET, "image_processor_type": "DeiTImageProcessor"}),
    "beit-b": (t.BeitForImageClassification, t.BeitConfig(use_relative_position_bias=True, **LABELS),
               {**PROCESSOR, "image_processor_type": "BeitImageProcessor"}),
    "swin-t": (t.SwinForImageClassification, t.SwinConfig(**LABELS),
               {**PROCESSOR, **IMAGENET, "image_processor_type": "ViTImageProcessor"}),
    "convnext-t": (t.ConvNextForImageClassification, t.ConvNextConfig(**LABELS), CROPPED),
    "resnet-50": (t.ResNetForImageClassification, t.ResNetConfig(**LABELS), CROPPED),
}


def main():
    folder = pathlib.Path(sys.argv[1])
    for name in sys.argv[2:] or MODELS:
        kind, config, processor = MODELS[name]
        torch.manual_seed(0)
        model = kind(config).eval()
        with torch.no_grad():
            for key, value in model.state_dict().items():
                # Initial weights are so small that every picture would look the same to the last layer.
                if value.dim() > 1 and key.endswith("weight"):
                    value.normal_(0, value[0].numel() ** -0.5)
                elif key.endswith(("lambda_1", "lambda_2", "layer_scale_parameter")):
                    value.fill_(0.3)
                elif key.endswith("running_var"):
                    value.uniform_(0.5, 1.5)
        model.save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(processor))
        print(name, sum(p.numel() for p in model.parameters()), "parameters")


main()
