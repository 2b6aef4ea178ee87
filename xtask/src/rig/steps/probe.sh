ft-ctl doctor || true
ft-ctl doctor --json >doctor.json || true
python3 - <<'END'
import json

report = json.load(open("doctor.json"))
print("auto picks", report["engine"] + ":", report["why"])
for check in report["checks"]:
    if check["name"] == "kvm" or check["name"].startswith("kvm "):
        if check["result"] not in ("ok", "note", "warning"):
            raise SystemExit(f"{check['name']}: {check['result']}: {check['detail']}")
if report["engine"] != "kvm":
    raise SystemExit("auto does not pick kvm here")
END
