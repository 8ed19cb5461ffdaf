    def _loader(self, part: {{ part }}) -> DataLoader[{{ batch }}]:
        return DataLoader(
            self.datasets[part],
            batch_size=self.batch_size,
            shuffle=part == "train",
{%- if whole_batches %}
            drop_last=part == "train",  # the loss of a batch depends on its size, or its statistics do
{%- endif %}
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> DataLoader[{{ batch }}]:
        """Shuffled, the same order for the same seed{% if whole_batches %}; what is left over of an epoch comes in another{% endif %}."""
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[{{ batch }}]:
        """The {{ samples }} {{ "to choose by" if whole_batches else "that choose the checkpoint" }}."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[{{ batch }}]:
        """The {{ samples }} that no choice may look at."""
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[{{ batch }}]:
        """The test {{ samples }} again; put your own here."""
        return self._loader("test")
