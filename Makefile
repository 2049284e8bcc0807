# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` set up everything they need in .venv and run. Nothing is installed outside of it.

PYTHON ?= python3
# The CPU build of PyTorch. With a CUDA GPU: make demo TORCH=torch==2.13.0
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
RUN ?= runs/demo
# A board that the emulator has; exit code 2 says that a tool is missing, which a demo survives
BOARD ?= stm32f405
bin := .venv/bin

.PHONY: demo test test-all arm-userland lint clean

demo: .venv/ready
	$(bin)/python compress/qat.py --arch local-lead --run $(RUN)
	$(bin)/python targets/deploy.py --run $(RUN) --target arm
	$(bin)/python bench/parity.py --run $(RUN)
	$(bin)/python bench/latency.py --target arm --run $(RUN)
	$(bin)/python targets/deploy.py --run $(RUN) --target host
	$(bin)/python bench/parity.py --run $(RUN) --target host
	$(bin)/python targets/deploy.py --run $(RUN) --target mcu --board $(BOARD) || test $$? -eq 2
	$(bin)/python bench/parity.py --run $(RUN) --target mcu --n 16 || test $$? -eq 2
	$(bin)/python bench/latency.py --run $(RUN) --target mcu --board $(BOARD) || test $$? -eq 2
	@echo "next, without hardware: $(bin)/python firmware_bridge/live.py --run $(RUN) --port sim --page"

test: .venv/ready
	$(bin)/python -m pytest -n 2

# The aarch64 userland of tests/test_arm_userland.py, in the user's cache; the tests set it up themselves, too
arm-userland: .venv/ready
	$(bin)/python targets/arm_userland.py

test-all: test lint demo

lint: .venv/ready
	$(bin)/ruff check .

.venv/ready: pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv .venv
	$(bin)/python -m pip install -q $(TORCH) || $(bin)/python -m pip install -q --extra-index-url $(TORCH_INDEX) $(TORCH) \
	  || $(bin)/python -m pip install -q torch==2.13.0
	$(bin)/python -m pip install -q -c constraints.txt -e ".[dev]"
	# a client that reads our simulator; one of its requirements builds nowhere any more and is needed for Bluetooth only
	$(bin)/python -m pip install -q --no-deps bitalino==1.2.6
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis
