"""What a Hugging Face Space starts: the page of `python run.py app`, in front of a ComfyUI that is fetched first."""

import sys

import run

if __name__ == "__main__":
    hosts = run.room("headless.hosts")
    run.room("headless.installation").fetch(hosts.chosen(), sys.executable)
    sys.exit(run.main(["app", "--here", "--listen", "0.0.0.0", "--port", "7860"]))
