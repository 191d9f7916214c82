"""What one build of a variant yields."""

from __future__ import annotations

from repro.measure.counts import count_variant
from repro.measure.needs import count_need
from repro.measure.plan import Job, records_of
from repro.spec.tables import Variant

FOURIER = """

class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.filter = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.fft.rfft2(self.norm(self.filter(x))).abs().mean((1, 2, 3))


def fourier():
    return Fourier()
"""


def test_an_operator_that_cannot_be_counted_leaves_the_params(second_paper):
    with (second_paper / "second_models.py").open("a") as file:
        file.write(FOURIER)
    variant = Variant(id="fourier", builder="python", model="second_models:fourier", arguments={})
    outcome = count_variant(variant, (16, 16))
    job = Job(needs=tuple(count_need(variant, metric, (16, 16)) for metric in ("params", "gmacs")))
    params, gmacs = records_of(job, outcome, {})
    assert params.error is None
    assert params.details["forms"] == {
        "as_trained": 8 * 27 + 16,
        "reparameterised": 8 * 27 + 16,
        "folded": 8 * 27 + 8,
        "folded_two_heads": 8 * 27 + 8,
    }
    assert gmacs.value is None
    assert gmacs.error is not None
    assert gmacs.error["reason"] == "refused"
    assert "fft_rfft2" in gmacs.error["message"]
