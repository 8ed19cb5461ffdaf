{% include cookiecutter.task ~ "/model.py" -%}
