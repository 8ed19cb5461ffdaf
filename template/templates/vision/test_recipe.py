{% include "shared/test_supervised.py" -%}
