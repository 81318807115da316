# The workload: a line, and then two thousand rows to JSON, back, and in order.
print("@work", flush=True)
import json

rows = [{"number": n, "name": "row %d" % n, "square": n * n} for n in range(2000)]
text = json.dumps(rows)
rows = sorted(json.loads(text), key=lambda row: row["name"])
print(len(text), rows[-1]["name"])
