{{ ('"""' ~ cookiecutter.project_name ~ ': a PyTorch Lightning project on firstlight."""') }}

__version__ = "0.1.0"
