import torch
from torch import nn

from diorama.training.remembered import Remembered


def test_answers_are_made_once_for_every_row_name_and_model(tmp_path):
    asked, model = [], nn.Linear(2, 2)

    def double(rows):
        asked.append(len(rows))
        return 2 * rows

    kept, x = Remembered(tmp_path / "kept", [model]), torch.rand(3, 4)
    assert torch.equal(kept("double", x, double), 2 * x) and asked == [1, 1, 1]
    again = Remembered(tmp_path / "kept", [model])
    assert torch.equal(again("double", x.flip(0), double), 2 * x.flip(0)) and len(asked) == 3
    again("other", x[:1], double)
    again("double", x[:1] + 1, double)
    again("double", x[:1].double(), double)
    assert len(asked) == 6
    with torch.no_grad():
        model.weight += 1
    Remembered(tmp_path / "kept", [model])("double", x[:1], double)
    assert len(asked) == 7


def test_a_damaged_file_counts_as_none_and_without_a_folder_nothing_is_kept(tmp_path):
    x, kept = torch.rand(2, 3), Remembered(tmp_path / "kept", [])
    kept("copy", x, torch.clone)
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(b"cut")
    assert torch.equal(kept("copy", x, torch.clone), x)
    assert torch.equal(Remembered(None, [])("copy", x, torch.neg), -x)
