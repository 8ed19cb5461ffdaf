def test_a_loaded_checkpoint_gives_the_logged_values(fast_run: Path, column: Column) -> None:
    run_of = ["--runs_dir", str(fast_run.parents[1]), "--run_name", "fast"]
    main.main(["validate", *run_of, "--ckpt_path", "last", "--config", "configs/debug/fast.yaml"])
    header = (fast_run / "validate" / "metrics.csv").read_text("utf-8").splitlines()[0]
    keys = [key for key in header.split(",") if key.startswith("val/")]
    assert keys
    for key in keys:
        found, logged = (column(folder, key)[-1] for folder in (fast_run / "validate", fast_run))
        assert found == pytest.approx(logged, rel=1e-5), key
