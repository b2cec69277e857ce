"""Rules on which module may know or change what, where import-linter cannot see it."""

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pruneengine.model import FAMILIES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pruneengine"
KERNELS = sorted((ROOT / "kernels" / "triton").glob("*.py"))
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".cpp", ".h", ".cu", ".cuh"})


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_import_torch_and_triton_alone(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or node.module in {p.stem for p in KERNELS}
            names.add((node.module or "").split(".")[0] if node.level == 0 else "torch")
    assert names <= {"torch", "triton", *sys.stdlib_module_names}


@pytest.mark.parametrize("path", NATIVE, ids=lambda p: p.name)
def test_native_sources_are_free_of_torch(path):
    includes = [line for line in path.read_text().splitlines() if line.startswith("#include")]
    assert not any(word in line for line in includes for word in ("torch", "ATen", "c10"))


def test_only_the_bindings_know_python():
    assert [p.name for p in NATIVE if "pybind11" in p.read_text()] == ["bindings.cpp"]


def test_no_package_named_kernels_shadows_hugging_face():
    assert not (ROOT / "kernels" / "__init__.py").exists()


MODEL_TYPES = {name for family in FAMILIES for name in (*family.model_types, family.equivalent) if name}
NAMES_ARCHITECTURES = {
    "model/families.py": "holds them",
    "model/modeling_pruned.py": "travels in checkpoints, with a class for each",
    "export/runtimes.py": "says which program opens which architecture",
    "export/deci.py": "writes the name of DeciLM's class",
    "export/deci_proof.py": "builds what vLLM's loader of DeciLM builds",
    "export/gguf/proof.py": "reads names of llama.cpp's architectures",
    "export/gguf/tensors.py": "writes names of llama.cpp's architectures",
    "export/gguf/tokenizer.py": "writes llama.cpp's names of tokenizers",
}
CHANGES_MODELS = {
    "model/edit.py": "changes models for good",
    "model/masking.py": "changes models within a with block",
    "model/modeling_pruned.py": "travels in checkpoints and imports nothing of the package",
}


def architecture_names(tree: ast.AST) -> Iterator[str]:
    """Yield strings that are a model type, and classes of transformers for single architectures."""
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if text in MODEL_TYPES or is_model_class(text):
                yield text
            case ast.ImportFrom(module="transformers", names=names):
                yield from (alias.name for alias in names if is_model_class(alias.name, ends="Config|Model"))
            case ast.Attribute(attr=name) if is_model_class(name):
                yield name


def is_model_class(name: str, ends: str = "") -> bool:
    ends = f"ForCausalLM|ForConditionalGeneration|{ends}".rstrip("|")
    return re.fullmatch(rf"(?!Auto|PreTrained|Pretrained)[A-Z]\w+({ends})", name) is not None


def changes_of_modules(tree: ast.AST) -> Iterator[str]:
    """Yield what assigns the weight, bias, data or forward of something other than ``self``, or writes into them."""
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=targets) | ast.Delete(targets=targets):
                yield from (ast.unparse(t) for target in targets for t in parts(target) if is_of_module(t))
            case ast.AugAssign(target=target) | ast.AnnAssign(target=target) | ast.For(target=target):
                yield from (ast.unparse(t) for t in parts(target) if is_of_module(t))
            case ast.Call(func=ast.Name(id="setattr"), args=[_, name, value]):
                if (isinstance(name, ast.Constant) and name.value in {"weight", "bias", "data", "forward"}) or any(
                    isinstance(inner, ast.Attribute) and inner.attr == "Parameter" for inner in ast.walk(value)
                ):
                    yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr="register_parameter")):
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(value=owner, attr=method)) if is_in_place(method) and is_of_module(owner):
                yield ast.unparse(node)


def parts(target: ast.expr) -> Iterator[ast.expr]:
    """Yield the single targets of an assignment: each of a tuple, and what a subscript writes into."""
    match target:
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            for element in elements:
                yield from parts(element)
        case ast.Subscript(value=owner):
            yield from parts(owner)
        case _:
            yield target


def is_of_module(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(value=owner, attr="detach")):
            return is_of_module(owner)
        case ast.Attribute(value=ast.Name(id="self")):
            return False
        case ast.Attribute(attr=name):
            return name in {"weight", "bias", "data", "forward"}
    return False


def is_in_place(method: str) -> bool:
    return method.endswith("_") and not method.endswith("__") and method != "requires_grad_"


def crowded_folders(package: Path, most: int = 13) -> dict[str, int]:
    """Return the number of modules of every folder that has more than a reader takes in."""
    files = [file.relative_to(package) for file in package.rglob("*.py") if file.name != "__init__.py"]
    counts = Counter(str(file.parent) for file in files if file.parts[0] != "kernels")
    return {folder: count for folder, count in counts.items() if count > most}


def loose_modules(package: Path) -> list[str]:
    return sorted(path.name for path in package.glob("*.py") if path.name != "__init__.py")


def sources() -> dict[str, ast.Module]:
    paths = sorted(path for path in PACKAGE.rglob("*.py") if "kernels" not in path.relative_to(PACKAGE).parts)
    return {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def test_only_families_holds_names_of_architectures():
    assert {name for name, tree in sources().items() if any(architecture_names(tree))} == NAMES_ARCHITECTURES.keys()


@pytest.mark.parametrize(
    "source",
    [
        'if config.model_type == "qwen2": pass',
        'classes = {"a": "LlamaForCausalLM"}',
        "from transformers import MistralConfig",
        "transformers.GemmaForCausalLM(config)",
    ],
)
def test_names_of_architectures_are_seen(source):
    assert len(list(architecture_names(ast.parse(source)))) == 1


def test_words_about_architectures_are_allowed():
    source = '"""Of Llama\'s layout, as llama or qwen2."""\nfrom transformers import AutoModelForCausalLM, AutoConfig'
    assert not list(architecture_names(ast.parse(source)))


def test_only_edit_and_masking_change_models():
    assert {name for name, tree in sources().items() if any(changes_of_modules(tree))} == CHANGES_MODELS.keys()


@pytest.mark.parametrize(
    "source",
    [
        "linear.weight = nn.Parameter(values)",
        "linear.bias = None",
        "a, (query.weight, b) = values",
        "model.get_submodule(path).forward = run",
        "del module.forward",
        "layer.mlp.up_proj.weight[3, 4] += 1",
        "parameter.data = parameter.data.half()",
        'setattr(module, "weight", values)',
        "setattr(module, name, nn.Parameter(values))",
        'module.register_parameter("bias", None)',
        "linear.weight.copy_(values)",
        "linear.weight.detach().mul_(2)",
    ],
)
def test_changes_of_modules_are_seen(source):
    assert len(list(changes_of_modules(ast.parse(source)))) == 1


def test_other_assignments_are_allowed():
    source = "self.weight = weight\nweight = linear.weight\nconfig.bias_flag = True\nmodel.requires_grad_(False)"
    assert not list(changes_of_modules(ast.parse(source)))


def test_no_module_lies_directly_under_the_package():
    assert loose_modules(PACKAGE) == []


def test_loose_modules_are_seen(tmp_path):
    for name in ("__init__.py", "stray.py", "py.typed"):
        (tmp_path / name).touch()
    assert loose_modules(tmp_path) == ["stray.py"]


def test_no_folder_is_crowded(tmp_path):
    assert crowded_folders(PACKAGE) == {}
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("")
    assert crowded_folders(tmp_path, most=1) == {".": 2}
