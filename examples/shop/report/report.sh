#!/bin/sh
# A one-page report on the stock.
echo "$SHOP_NAME"
awk -F, '{ value += $2 * $3; if ($3 == 0) empty = empty " " $1 }
  END { printf "stock is worth %.2f; to be ordered:%s\n", value / 100, empty }' data/products.csv
