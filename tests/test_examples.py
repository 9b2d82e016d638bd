"""The third host of examples/, on a stand-in for Hugging Face's Trainer: the calls that the example relies on."""

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

EXAMPLE = Path(__file__).parents[1] / "examples" / "huggingface_trainer.py"


class StandIn:
    """Plain SGD, called as transformers' Trainer calls what is overridden."""

    def __init__(self, model, args=None, data_collator=None, train_dataset=None):
        self.model, self.args, self.collate, self.train_dataset = model, args, data_collator, train_dataset
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    def batch(self, step):
        draw = torch.Generator().manual_seed(step)
        chosen = torch.randint(len(self.train_dataset), (self.args.batch_size,), generator=draw)
        return self.collate([self.train_dataset[int(i)] for i in chosen])

    def train(self, steps=range(6)):
        losses = []
        self.model.train()
        for step in steps:
            loss = self.compute_loss(self.model, self.batch(step))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def _save(self, output_dir=None, state_dict=None):
        Path(output_dir).mkdir(parents=True)
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], f"{output_dir}/stock.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        weights, optimizer = torch.load(f"{resume_from_checkpoint}/stock.pt", weights_only=True)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(optimizer)

    @torch.no_grad()
    def predict(self, dataset):
        self.model.eval()
        inputs = self.collate([dataset[i] for i in range(len(dataset))])
        loss, outputs = self.compute_loss(self.model, inputs, return_outputs=True)
        assert loss.isfinite()
        return SimpleNamespace(predictions=outputs["logits"].numpy(), label_ids=inputs["labels"].numpy())


@pytest.fixture
def stand_in(monkeypatch):
    transformers = ModuleType("transformers")
    transformers.Trainer = StandIn
    transformers.TrainingArguments = lambda folder, **given: SimpleNamespace(
        output_dir=folder, device=torch.device("cpu"), batch_size=given["per_device_train_batch_size"]
    )
    monkeypatch.setitem(sys.modules, "transformers", transformers)


def test_the_script_runs(stand_in, capsys):
    result = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out.startswith("test error ")
    memory = result["mbj_loss"].memories["feature"]
    assert memory.start == 360 and memory.step == 6 and memory.bank.filled > 0


def test_a_resumed_run_is_the_run_that_was_never_stopped(stand_in, tmp_path):
    example = runpy.run_path(str(EXAMPLE))
    images = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(images, torch.arange(40) % 10)
    args = SimpleNamespace(output_dir=str(tmp_path), device=torch.device("cpu"), batch_size=8)

    def trainer():
        torch.manual_seed(1)
        model = example["timm"].create_model("resnet32_cifar", num_classes=10, in_chans=1, depth=8, width=4)
        loss = example["MBJLoss"]([40 - 3 * c for c in range(10)], start=3)
        return example["MBJTrainer"](model, loss, args=args, data_collator=example["collate"], train_dataset=data)

    whole, first, second = trainer(), trainer(), trainer()
    losses = whole.train(range(8))
    assert whole.mbj_loss.parts["loss_memory"] > 0
    assert first.train(range(5)) == losses[:5]
    first._save(f"{tmp_path}/checkpoint-5")
    second._load_from_checkpoint(f"{tmp_path}/checkpoint-5")
    assert second.train(range(5, 8)) == losses[5:]
    for key, value in whole.mbj_loss.state_dict().items():
        assert torch.equal(value, second.mbj_loss.state_dict()[key]), key
