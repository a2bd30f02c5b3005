"""The benches: what they compare, and that the pages show what they have measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "benches", *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def benches(monkeypatch):
    """Whatever bench is asked for, as a module."""
    import importlib

    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benches.{name}")


def test_the_pages_show_what_was_measured():
    done = run("table", "--check")
    assert done.returncode == 0, done.stderr


def test_what_can_be_run_is_listed_without_its_helpers():
    done = run()
    listed = set(done.stdout.partition("one of: ")[2].strip().split(", "))
    assert {"contrastive_loss", "train_step", "table"} <= listed
    assert not listed & {"__main__", "machine", "pages", "providers", "utilization"}


def test_a_page_that_says_something_else_is_found(benches, monkeypatch, tmp_path):
    table = benches("table")
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("| naive autograd | ", "| naive autograd | 9")
    (tmp_path / "README.md").write_text(text, encoding="utf-8")
    for folder in ("benches", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["table", "--check"])
    with pytest.raises(SystemExit, match="README.md differ"):
        table.main()


def test_a_wrong_provider_gets_no_time(benches):
    row = {"provider": "x", "error": 0.5, "median_ms": None, "over_products": None}
    bare = {"provider": "three products, torch.mm", "error": None, "median_ms": 2.0, "over_products": 1.0}
    table = benches("table")
    report = {"dtype": "bfloat16", "results": [{"shape": list(table.SHAPE), "rows": [bare, row]}]}
    assert "| x | wrong: error 5.0e-01 |" in table.table(("x bare", "gradient error"), [report])


def refuses(*_inputs):
    raise ValueError("takes as many passages as queries\nand more")


def nothing(query, passage, _target):
    return torch.zeros_like(query), torch.zeros_like(passage)


@pytest.mark.parametrize(("name", "failed"), [("peer", False), ("fastdense reference", True)])
def test_a_provider_that_cannot_run_is_shown_with_its_reason(benches, monkeypatch, name, failed):
    bench = benches("contrastive_loss")
    monkeypatch.setattr(bench, "providers", lambda *_: {name: refuses})
    row = bench.measure((8, 16, 4), "float32", "cpu", 1, [])[-1]
    assert bench.show(row).split(name)[1].strip() == "cannot: takes as many passages as queries"
    assert row.failed == failed


def test_the_bench_fails_after_all_is_measured_and_written(benches, monkeypatch, tmp_path, capsys):
    bench, output = benches("contrastive_loss"), tmp_path / "results" / "here.json"
    peer = benches("providers").python_chunks
    monkeypatch.setattr(bench, "providers", lambda *_: {"fastdense a": refuses, "fastdense b": nothing, "peer": peer})
    shapes = ["--shape", "8x16x4", "--shape", "16x16x4"]
    monkeypatch.setattr(sys, "argv", ["bench", *shapes, "--repeats", "1", "--output", str(output)])
    with pytest.raises(SystemExit) as ended:
        bench.main()
    for shape in ((8, 16, 4), (16, 16, 4)):
        assert f"fastdense a at {shape} (cannot: takes as many passages as queries)" in ended.value.code
        assert f"fastdense b at {shape} (wrong: error 1.0e+00)" in ended.value.code
    assert "ValueError: takes as many" in capsys.readouterr().err
    for result in json.loads(output.read_text())["results"]:
        assert [row["median_ms"] is not None for row in result["rows"][-3:]] == [False, False, True]
    assert [file.name for file in output.parent.iterdir()] == ["here.json"]


def test_a_kernel_that_never_returns_takes_nothing_along(benches, monkeypatch, tmp_path):
    bench, output = benches("contrastive_loss"), tmp_path / "here.json"

    def hangs(query, passage, target):
        if len(query) == 16:
            raise KeyboardInterrupt
        return peer(query, passage, target)

    peer = benches("providers").python_chunks
    monkeypatch.setattr(bench, "providers", lambda *_: {"peer": peer, "fastdense native": hangs})
    shapes = ["--shape", "8x16x4", "--shape", "16x16x4"]
    monkeypatch.setattr(sys, "argv", ["bench", *shapes, "--repeats", "2", "--output", str(output)])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    first, second = (result["rows"] for result in json.loads(output.read_text())["results"])
    assert first[-1]["provider"] == "fastdense native"
    assert first[-1]["median_ms"] is not None
    assert second[-1]["provider"] == "peer"
    assert second[-1]["median_ms"] is not None


def test_a_provider_that_fails_later_keeps_its_time(benches, monkeypatch):
    bench, calls = benches("contrastive_loss"), iter(range(4))
    peer = benches("providers").python_chunks

    def spoilt(*inputs):
        return peer(*inputs) if next(calls) < 3 else refuses()

    monkeypatch.setattr(bench, "providers", lambda *_: {"fastdense x": spoilt})
    monkeypatch.setattr(bench, "SHORTEST", 0.0)  # one call a turn, after one for the error and one for the peak
    monkeypatch.setattr(bench, "_hopeless", lambda *_: False)
    row = bench.measure((8, 16, 4), "float32", "cpu", 3, [])[-1]
    assert row.failed
    assert "then: takes as many passages as queries" in bench.show(row)
    assert " ms " in bench.show(row)


def test_our_own_gradients_must_be_closer(benches, monkeypatch):
    bench = benches("contrastive_loss")

    def five_percent_off(*inputs):
        return tuple(1.05 * gradient for gradient in bench.exact_gradients(*inputs))

    monkeypatch.setattr(bench, "providers", lambda *_: dict.fromkeys(("peer", "fastdense x"), five_percent_off))
    *_bare, peer, own = bench.measure((8, 16, 4), "bfloat16", "cpu", 1, [])
    assert peer.median_ms is not None
    assert "wrong: error 5.0e-02" in bench.show(own)


@pytest.mark.parametrize("reason", [None, "built without CUDA kernels"])
def test_the_cuda_kernels_are_compared_last_and_where_they_are(benches, monkeypatch, reason):
    providers = benches("providers")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(providers.IMPLEMENTATIONS["native"], "unavailable", lambda *_: reason)
    names = list(providers.providers("cuda", torch.bfloat16, ["native", "naive"]))
    ours = ["fastdense native by mma", "fastdense native"]
    assert names == ["naive autograd", *([] if reason else ours)]


def test_peers_kernels_are_asked_for_on_a_gpu_only(benches, capsys):
    providers = benches("providers").providers
    providers("cuda", torch.float32, ["Liger", "memeff"])
    assert "Liger: not installed here, left out" in capsys.readouterr().err
    assert providers("cpu", torch.float32, ["Liger", "memeff"]) == {}
    assert capsys.readouterr().err == ""


def test_the_bench_and_its_picture(tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "results" / "here.json"
    only = ("--only", "native", "--only", "naive")
    done = run("contrastive_loss", "--shape", "16x16x768", "--repeats", "1", *only, "--output", str(output))
    assert done.returncode == 0, done.stderr
    providers = [row["provider"] for row in json.loads(output.read_text())["results"][0]["rows"]]
    assert providers[-2:] == ["fastdense native", "naive autograd"]
    assert run("plot", str(output), "--output_dir", str(tmp_path)).returncode == 0
    assert "naive autograd" in (tmp_path / "loss-here.svg").read_text()


def test_an_absent_provider_is_left_out_by_name(benches, monkeypatch, capsys):
    providers = benches("providers")
    monkeypatch.setattr(providers, "find_spec", lambda name: None)
    assert providers.providers("cpu", torch.float32, ["sentence-transformers"]) == {}
    assert capsys.readouterr().err == "sentence-transformers: not installed here, left out\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bare_products_that_torch_refuses_here_are_left_out(benches, dtype):
    a, b = torch.randn(40, 24).to(dtype), torch.randn(33, 24).to(dtype)
    products = benches("providers").matrix_products("cpu", dtype)
    assert "torch.mm" in products
    for name, multiply in products.items():
        torch.testing.assert_close(multiply(a, b), a @ b.T, rtol=2e-2, atol=2e-2, msg=name)


def test_a_hopeless_provider_gets_one_turn(benches):
    seconds = {"quick": [1.0], "slow": [11.0], "new": []}
    hopeless = benches("contrastive_loss")._hopeless
    assert [name for name in seconds if hopeless(seconds, name)] == ["slow"]


def test_results_without_a_sweep_make_no_picture(tmp_path):
    (tmp_path / "x.json").write_text('{"results": []}')
    done = run("plot", str(tmp_path / "x.json"), "--output_dir", str(tmp_path))
    assert done.returncode == 1
    assert "--sweep" in done.stderr


def test_the_search_bench(benches, tmp_path):
    search = benches("search")
    queries = search.write_corpus(tmp_path, passages=300, width=16, shards=3, queries=5)
    found = search.measure(tmp_path, queries, depth=4, threads=1)
    assert found.keys() == {"seconds", "cpu_seconds", "peak_anonymous_mib"}
    assert 10 < found["peak_anonymous_mib"] < 2000
    wrong = search.Representations(queries.ids[::-1], queries.vectors)
    with pytest.raises(SystemExit, match="4 of 5 queries miss"):
        search.measure(tmp_path, wrong, depth=4, threads=1)


@pytest.mark.slow
def test_every_provider_takes_part_by_default():
    pytest.importorskip("sentence_transformers")
    code = "import torch; from benches.providers import providers; print(*providers('cpu', torch.float32), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {"fastdense native", "fastdense reference", "fastdense through autograd"}
    torchs = {"naive autograd", "torch.compile", "F.linear_cross_entropy", "Python chunks of 256"}
    assert set(done.stdout.splitlines()) == ours | torchs | {"sentence-transformers"}


def step_report(batch, **examples_per_second):
    """As the training step's bench writes it; names with underscores for spaces."""
    row = {"error": 1e-7, "padding": 0.051, "peak_mib": None}
    rows = [
        {**row, "provider": provider.replace("_", " "), "examples_per_second": speed}
        for provider, speed in examples_per_second.items()
    ]
    about = {"machine": "m", "threads": 2, "torch": "t", "model": "n", "n_passages": 2, "dtype": "float32"}
    return {**about, "results": [{"batch": batch, "rows": rows}]}


STEP_PEERS = {"sentence-transformers": 5.0, "sentence-transformers 1024 tokens": 6.0}


def test_the_step_s_table_shows_the_json_and_no_column_that_was_not_measured(benches):
    table = benches("step_table")
    made = table.table([step_report(64, fastdense_cached=12.0, **STEP_PEERS)])
    best = "sentence-transformers 4096 tokens"
    both = table.table([step_report(8, fastdense_cached=12.0, **STEP_PEERS, **{best: 8.0, "v1-style": 4.0})])
    assert made.splitlines()[-1] == "| m | n, float32 | 64 x 2 | 12.0 | 2.40 | 2.00 | 5%, 5% | 1e-07 |"
    assert both.splitlines()[-1] == "| m | n, float32 | 8 x 2 | 12.0 | 2.40 | 1.50 | 3.00 | 5%, 5% | 1e-07 |"
    assert {line.count("|") for line in made.splitlines()} == {9}


def test_the_step_s_picture_has_a_bar_for_each_comparison(benches, tmp_path):
    pytest.importorskip("matplotlib")
    reports = [step_report(batch, fastdense_cached=12.0, **STEP_PEERS) for batch in (64, 64, 256)]
    benches("step_table").draw(reports, tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().count("<!-- 2.4 x -->") == len(reports)


def test_the_step_s_table_is_that_of_the_json(benches):
    table = benches("step_table")
    reports = [json.loads(file.read_text()) for file in sorted((ROOT / "benches/results").glob("train-step-*.json"))]
    page = table.PAGE.read_text(encoding="utf-8")
    assert benches("pages").with_table(page, table.table(reports), table.START, table.PAGE) == page


def test_a_table_goes_between_the_markers_of_its_page(benches):
    pages = benches("pages")
    start = pages.start_marker("some_bench")
    page = pages.with_table(f"a{start}old{pages.END}b", "new", start, Path("a.md"))
    assert "new" in page
    assert "old" not in page
    assert (page[0], page[-1]) == ("a", "b")
    with pytest.raises(SystemExit, match=r"a\.md lacks its two markers"):
        pages.with_table("a page without them", "", start, Path("a.md"))


def test_a_step_needs_six_operations_for_each_weight_and_token(benches):
    utilization = benches("utilization")
    encoder = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Linear(4, 5))
    assert utilization.encoder_operations(encoder, [2, 3]) == 6 * (4 * 5) * (2 + 3)
    assert utilization.product_rate("cpu", "float32") > 1e9


def test_the_ranks_bench_and_its_table(benches, tmp_path):
    benches("ranks")._rank(0, 1, str(tmp_path), (4, 8, 16), 1)  # what one process of one does
    assert json.loads((tmp_path / "0.json").read_text()).keys() == {"loss_cpu_ms", "exchange_ms", "error"}
    table = benches("ranks_table")
    report = json.loads((ROOT / "benches/results/ranks-cpu-intel-xeon-sapphire-rapids.json").read_text())
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    assert benches("pages").with_table(page, table.table(report), table.START, Path()) == page


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::bmm", "matrix products"),
        ("aten::add_", "element-wise"),
        ("aten::_scaled_dot_product_attention", "attention"),
        ("aten::native_dropout_backward", "dropout"),
        ("fastdense::contrastive", "loss"),
        ("aten::empty", "other"),
    ],
)
def test_the_profile_names_the_kind_of_an_operation(benches, operation, kind):
    assert benches("step_profile").kind_of(operation) == kind


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_both_libraries_compute_a_layer_s_products(benches):
    for ways in benches("linears").products(5, 8, 12).values():
        expected, found = (way() for way in ways.values())
        torch.testing.assert_close(found, expected)


@pytest.mark.slow
def test_the_jax_step_bench_compares_equal_gradients(tmp_path):
    pytest.importorskip("jax")
    found = tmp_path / "steps.json"
    arguments = ["--devices", "2", "--size", "tiny", "--batch", "8", "--rounds", "1", "--json", str(found)]
    subprocess.run([sys.executable, "-m", "benches", "jax_step", *arguments], cwd=ROOT, check=True, timeout=600)
    lines = {line["step"]: line for line in json.loads(found.read_text())}
    assert set(lines) == {"fastdense", "fastdense grad_cache", "jnp", "optax", "scan"}
    assert all(line.get("difference", 0) < 1e-5 and line["temp_mib"] > 0 for line in lines.values())
