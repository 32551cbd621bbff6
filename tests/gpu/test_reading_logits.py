"""Logits on a GPU: what is told of each token is what torch says of it, or it is counted."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import pertoken  # noqa: E402

VOCABULARY = 50_257  # odd, so that rows begin anywhere


class Model(torch.nn.Module):
    """Logits at random; a copy of each step's is held."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, device="cuda"))
        self.dtype = dtype
        self.held: list[torch.Tensor] = []

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        logits = torch.randn(*input_ids.shape, VOCABULARY, device="cuda").mul_(4).to(self.dtype)
        self.held.append(logits[:, -1].clone())
        return logits


def _said(logits: torch.Tensor) -> dict[str, torch.Tensor]:
    log_probs = logits.double().log_softmax(-1)
    top = log_probs.exp().topk(2, -1).values
    return {
        "top1_prob": top[:, 0],
        "margin": top[:, 0] - top[:, 1],
        "entropy": -(log_probs.exp() * log_probs).sum(-1),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 100])
def test_every_token_of_a_loop_is_as_torch_says(dtype: torch.dtype, rows: int) -> None:
    torch.manual_seed(0)
    model = Model(dtype)
    ids = torch.zeros(rows, 1, dtype=torch.long, device="cuda")
    with pertoken.profile(model, logits=True) as recording, torch.inference_mode():
        for _ in range(20):
            with pertoken.step(kind="decode", rows=rows, tokens_committed=rows):
                model(ids).fill_(0)  # over what was read
    profile = recording.result()
    assert profile.losses["observations_skipped"] == {}
    table = profile.tokens
    assert len(table) == 20 * rows
    steps = table["step"] - table["step"][0]
    for step, logits in enumerate(model.held):
        own = steps == step
        for name, right in _said(logits).items():
            found = torch.tensor(table[name][own].copy()).double()
            torch.testing.assert_close(found, right.cpu(), rtol=2e-5, atol=2e-5)


def test_the_tokens_of_generate_are_found_on_the_device() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=1003,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = transformers.LlamaForCausalLM(config).cuda().eval()
    ids = torch.randint(1, 1003, (3, 7), device="cuda")
    with pertoken.profile(model, logits=True) as recording:
        result = model.generate(
            ids,
            max_new_tokens=16,
            do_sample=True,
            output_logits=True,
            return_dict_in_generate=True,
        )
    profile = recording.result()
    assert profile.losses["observations_skipped"] == {}
    logits = torch.stack(result.logits, 1)
    chosen = result.sequences[:, -16:, None]
    right = logits.double().log_softmax(-1).gather(-1, chosen)[..., 0].cpu().numpy()
    table = profile.tokens
    assert len(table) == 48
    assert table["logprob"] == pytest.approx(right[table["row"], table["position"]], abs=2e-5)


def test_a_capture_goes_on_and_its_tokens_are_counted() -> None:
    model = Model(torch.float32)
    ids = torch.zeros(2, 1, dtype=torch.long, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with pertoken.profile(model, logits=True) as recording:
        with torch.cuda.graph(graph), pertoken.step(kind="decode", rows=2, tokens_committed=2):
            output = model(ids)
        graph.replay()
        torch.cuda.synchronize()
    assert bool(output.isfinite().all())
    assert recording.result().losses["observations_skipped"] == {
        "tokens: the stream was being captured into a CUDA graph": 2
    }
