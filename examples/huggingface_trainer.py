"""A third host: MBJ in Hugging Face's Trainer, on any timm model, here on long-tailed digits. Needs accelerate too."""

import numpy as np
import timm
import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset
from transformers import Trainer, TrainingArguments

from mbj_plugin import exponential_subset
from mbj_plugin.timm import MBJLoss


class MBJTrainer(Trainer):
    """Trainer with an MBJLoss, whose memory is saved beside each checkpoint."""

    def __init__(self, model, mbj_loss, **arguments):
        self.mbj_loss = mbj_loss.bind(model)  # before Trainer makes the optimizer
        super().__init__(model, **arguments)
        self.mbj_loss.to(self.args.device)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        self.mbj_loss.train(model.training)
        logits = model(inputs["images"])
        loss = self.mbj_loss(logits, inputs["labels"])
        return (loss, {"logits": logits}) if return_outputs else loss

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        torch.save(self.mbj_loss.state_dict(), f"{output_dir or self.args.output_dir}/mbj.pt")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.mbj_loss.load_state_dict(torch.load(f"{resume_from_checkpoint}/mbj.pt", weights_only=True))


def collate(batch):
    images, labels = zip(*batch, strict=True)
    return {"images": torch.stack(images), "labels": torch.stack(labels)}


if __name__ == "__main__":
    images, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))
    images = images.float().reshape(-1, 1, 8, 8) / 16
    test, train = np.split(np.random.default_rng(0).permutation(len(labels)), [500])
    train = train[exponential_subset(labels[train], imbalance_ratio=50)]
    model = timm.create_model("resnet32_cifar", num_classes=10, in_chans=1)
    mbj_loss = MBJLoss(torch.bincount(labels[train]), start=360)
    # max_grad_norm 0: Trainer would clip by a norm that has the memory's gradient in it.
    args = TrainingArguments(
        "output/huggingface", max_steps=600, per_device_train_batch_size=32, max_grad_norm=0, label_names=["labels"]
    )
    data = TensorDataset(images[train], labels[train])
    trainer = MBJTrainer(model, mbj_loss, args=args, data_collator=collate, train_dataset=data)
    trainer.train()
    predictions = trainer.predict(TensorDataset(images[test], labels[test]))
    print(f"test error {100 * np.mean(predictions.predictions.argmax(1) != predictions.label_ids):.1f} %")
