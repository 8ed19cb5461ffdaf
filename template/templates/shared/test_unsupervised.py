def test_a_loaded_checkpoint_gives_the_logged_values(fast_run: Path, column: Column) -> None:
    config = yaml.safe_load((fast_run / "config.yaml").read_text("utf-8"))
    module = MODULE.load_from_checkpoint(fast_run / "checkpoints" / "last.ckpt", map_location="cpu")
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(accelerator="cpu", limit_val_batches=2, **quiet)  # as many as fast.yaml has
    (found,) = trainer.validate(module, DATA(**config["data"]), verbose=False)
    assert found
    for key, value in found.items():
        assert value == pytest.approx(column(fast_run, key)[-1], rel=1e-5), key
