{% include "shared/test_digits_data.py" -%}
