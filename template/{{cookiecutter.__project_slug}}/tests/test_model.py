{% include cookiecutter.task ~ "/test_model.py" -%}
