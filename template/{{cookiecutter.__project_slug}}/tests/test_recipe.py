{% include cookiecutter.task ~ "/test_recipe.py" -%}
