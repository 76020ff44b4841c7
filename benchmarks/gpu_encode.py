"""Encoding images at full size on a CUDA GPU: ViT-g and Q-Former with random weights, in captune and in transformers.

    python benchmarks/gpu_encode.py [--json]      on a GPU; without one it says so and exits with 2
    python benchmarks/gpu_encode.py --tiny        the same program on any machine at tiny dims

The peer is `Blip2ForConditionalGeneration.get_image_features` in bfloat16 on the same weights. Operations are counted
by formula (2 a weight and token, and attention) and compared with a large matrix product measured in the same run.
"""

from __future__ import annotations

import sys

from gpu_models import build, clocked, matmul_rate
from measuring import Output, median, options, relative

# isort: split
import torch


def main() -> int:
    """Encode batches in both programs and print rates, memory and differences."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 128, 256, 512], help="images at once")
    parser.add_argument("--tiny", action="store_true", help="tiny dims, on a CPU where there is no GPU: a test run")
    arguments = parser.parse_args()
    if not torch.cuda.is_available() and not arguments.tiny:
        print("This benchmark needs a CUDA GPU, and torch finds none; --tiny tries it at tiny dims.", file=sys.stderr)
        return 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else None
    output = Output(arguments.json, "ViT-g and Q-Former, random bfloat16 weights", name)
    rate = matmul_rate(device, 8192 if on_gpu else 512)
    # The towers are what counts here; a tiny language model follows the large ones.
    model, peer = build("tiny" if arguments.tiny else "encode", device)
    model.vision, model.qformer, model.query_tokens = peer.vision_model, peer.qformer, peer.query_tokens
    vision = peer.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    weights = sum(parameter.numel() for parameter in peer.vision_model.encoder.parameters())
    attention = 4 * tokens**2 * vision.hidden_size * vision.num_hidden_layers
    of_an_image = 2 * tokens * weights + attention
    rows, result = [], {}
    for count in [2] if arguments.tiny else arguments.batches:
        side = vision.image_size
        pixels = torch.randn(count, 3, side, side, device=device, dtype=torch.bfloat16)
        with torch.inference_mode():
            ways = {
                "transformers": lambda pixels=pixels: peer.get_image_features(pixels, return_dict=True),
                "captune": lambda pixels=pixels: model.encode_features(pixels),
            }
            expected = ways["transformers"]().qformer_outputs.last_hidden_state
            difference = relative(ways["captune"](), expected)
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(arguments.rounds):
                for way, run in ways.items():
                    seconds[way].append(clocked(run, device))
        middle = median(seconds)
        tflops = count / middle["captune"] * of_an_image / 1e12
        result = {
            "batch": count,
            "images_per_s": round(count / middle["captune"], 1),
            "peer_images_per_s": round(count / middle["transformers"], 1),
            "ratio": round(middle["transformers"] / middle["captune"], 3),
            "tflops": round(tflops, 3),
            "share_of_matmul": round(tflops / rate, 4),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else 0.0,
            "features_relative_difference": difference,
            "identical": difference == 0,
        }
        output.line(kind="batch", **result)
        rows.append(list(result.values())[:-1])
    heads = ["images at once", "captune/s", "transformers/s", "ratio", "TFLOP/s", "of matmul", "peak GB", "difference"]
    output.table(heads, [[f"{value:,.4g}" for value in row] for row in rows])
    output.line(kind="result", matmul_tflops=round(rate, 3), **result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
