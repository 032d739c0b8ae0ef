"""Adds up the orders, and says which cannot be sent yet."""

prices, stock, totals, waiting = {}, {}, {}, set()
with open("data/products.csv", encoding="utf-8") as file:
    for line in file:
        name, cents, count = line.strip().split(",")
        prices[name], stock[name] = int(cents), int(count)
with open("data/orders.csv", encoding="utf-8") as file:
    for line in file:
        order, name, count = line.strip().split(",")
        totals[order] = totals.get(order, 0) + prices[name] * int(count)
        if stock[name] < int(count):
            waiting.add(order)
for order, cents in totals.items():
    print(f"order {order}: {cents / 100:6.2f}  {'waits for stock' if order in waiting else 'ready'}")
