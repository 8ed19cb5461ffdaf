{% include "shared/digits_data.py" -%}
