# SPDX-License-Identifier: Apache-2.0
"""Images boot on every emulated core, say how they end, and are counted to the instruction."""

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
import serial

from targets import emulate, target, toolchain
from targets.toolchain import Region
from train.say import MissingError, UserError

HEAD = '#include "ecg_boot.h"\n#include "ecg_semihost.h"\n'
BOARDS = target.boards("mcu")
SPIN = """
__attribute__((naked, noinline)) void spin(uint32_t n)
{
    __asm__(".syntax unified\\n1: subs r0, #1\\n bne 1b\\n bx lr");
}
"""
VARIABLES = """
static int32_t given[3] = { 7, -8, 9 }, zero[5];
static volatile float real = 1.5f;
static const char *volatile text = "constant";
int main(void)
{
    real *= 3;
    ecg_print_int(given[0] + given[1] + given[2] + zero[4] + (int32_t)(real * 2) + text[0]);
    ecg_print("\\n");
    ecg_exit(real == 4.5f ? 0 : 1);
}
"""


def need(core: str, using: str | None = None) -> None:
    """Skip in the tool's words."""
    for absent in (toolchain.missing(core), emulate.missing()):
        if absent:
            pytest.skip(absent)
    if using and using not in toolchain.available(core):
        pytest.skip(f"{using} for {core} is not installed")


def image(folder: Path, core: str, text: str, on: emulate.Machine | None = None, **options) -> Path:
    """An ELF file of a main() given as text."""
    need(core, options.get("using"))
    source = folder / "main.c"
    source.write_text(HEAD + text)
    on = on or emulate.machine(core)
    return toolchain.image(core, [source, toolchain.SEMIHOST], folder / "test.elf", on.flash, on.ram, **options)


def run(folder: Path, core: str, text: str, on: emulate.Machine | None = None, **options) -> emulate.Done:
    """Build and run."""
    return emulate.run(image(folder, core, text, on, **options), on or emulate.machine(core))


@pytest.mark.parametrize("using", ["gcc", "zig"])
@pytest.mark.parametrize("core", emulate.OF_CORE)
def test_every_core_boots_and_its_variables_hold_their_first_values(tmp_path, core, using):
    assert run(tmp_path, core, VARIABLES, using=using) == emulate.Done(0, "116\n")


@pytest.mark.parametrize("name", emulate.MACHINES)
def test_every_machine_has_the_memories_that_are_written_down(tmp_path, name):
    on = emulate.MACHINES[name]
    last = on.ram.origin + on.ram.length - 4
    text = f"""int main(void)
    {{
        volatile uint32_t *last = (uint32_t *){last:#x}u;
        *last = 0x12345678u;
        ecg_exit(*last == 0x12345678u ? 0 : 1);
    }}"""
    elf = image(tmp_path, on.core, text, on, model=on.flash.origin + on.flash.length - 4096)
    assert emulate.run(elf, on).code == 0


@pytest.mark.parametrize("name", BOARDS)
def test_an_image_links_for_every_board_into_its_memories(tmp_path, name):
    board = BOARDS[name]
    flash, ram = Region(board["flash_at"], board["flash"]), Region(board["ram_at"], board["ram"])
    need(board["core"])
    source = tmp_path / "main.c"
    source.write_text("static volatile int x = 3, y; int main(void) { return x + y; }")
    elf = toolchain.image(board["core"], [source], tmp_path / "board.elf", flash, ram)
    sections = toolchain.Image(elf).sections
    assert sections[".vectors"].origin == flash.origin and sections[".stack"].origin == ram.origin
    assert 1 <= board["mhz"] <= 1000 and board.get("qemu", on_board(board)) == on_board(board)
    assert ("ma_per_mhz" in board) == ("volt" in board)


def on_board(board: dict) -> str | None:
    """The emulated machine of a board, which has its core."""
    found = emulate.MACHINES.get(board.get("qemu"))
    return found.name if found and found.core == board["core"] else None


def test_words_and_files_reach_the_image(tmp_path):
    data = tmp_path / "some, data"
    data.write_bytes(bytes(range(256)) * 40)
    text = """static char path[200];
    static uint8_t bytes[10240];
    int main(void)
    {
        int32_t file, sum = 0;
        if (ecg_command_line(path, sizeof path) || (file = ecg_open(path)) < 0)
            ecg_exit(2);
        if (ecg_read(file, bytes, 3) || ecg_read(file, bytes + 3, sizeof bytes - 3))
            ecg_exit(3);
        for (uint32_t i = 0; i < sizeof bytes; i++)
            sum += (int32_t)(bytes[i] * (i % 3));
        ecg_print_int(sum);
        ecg_exit(ecg_read(file, bytes, 1) == -1 && ecg_open("/not/there") == -1 ? 0 : 4);
    }"""
    done = emulate.run(image(tmp_path, "m4", text), emulate.machine("m4"), words=str(data))
    assert done == emulate.Done(0, str(sum(byte % 256 * (byte % 3) for byte in range(10240))))


@pytest.mark.parametrize("core", emulate.OF_CORE)
def test_a_fault_ends_the_run_and_says_where_it_was(tmp_path, core):
    text = """__attribute__((noinline)) void bad(void) { *(volatile uint32_t *)0x5fffff00u = 1; }
    int main(void) { bad(); ecg_exit(0); }"""
    elf = image(tmp_path, core, text)
    done = emulate.run(elf, emulate.machine(core))
    bad = toolchain.Image(elf).symbols["bad"]
    assert done.code == 70 and done.text.startswith("fault at ")
    assert bad.address <= int(done.text.split()[2], 16) < bad.address + bad.size


@pytest.mark.parametrize("core", emulate.OF_CORE)
def test_a_stack_that_overflows_is_a_fault_and_overwrites_nothing(tmp_path, core):
    text = """__attribute__((noinline)) int32_t deep(int32_t n, volatile int32_t *p)
    {
        volatile int32_t here[8] = { n };
        return n ? deep(n - 1, here) + p[0] : 0;
    }
    static volatile int32_t depth = 100000;
    int main(void) { int32_t x = 0; ecg_exit(deep(depth, &x) == 1); }"""
    done = run(tmp_path, core, text, stack=1024)
    assert done.code == 70 and "stack overflow?" in done.text


def test_a_device_keeps_the_note_of_a_fault_over_its_reset(tmp_path):
    text = """int main(void)
    {
        if (ecg_faulted.magic == ECG_FAULTED)
            ecg_exit(ecg_faulted.address == 0x5fffff00u && ecg_faulted.pc ? 33 : 1);
        *(volatile uint32_t *)0x5fffff00u = 1;
        ecg_exit(2);
    }"""
    assert run(tmp_path, "m4", text, flags=["-DECG_FAULT_RESETS"]).code == 33


@pytest.mark.parametrize("core", emulate.OF_CORE)
def test_the_high_water_mark_of_the_stack_is_the_deepest_call(tmp_path, core):
    text = """__attribute__((noinline)) void use(uint32_t n)
    {
        volatile uint8_t bytes[600];
        for (uint32_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)(n + i);
    }
    int main(void)
    {
        uint32_t before = ecg_stack_used();
        use(1);
        ecg_print_int((int32_t)before);
        ecg_print(" ");
        ecg_print_int((int32_t)ecg_stack_used());
        ecg_exit(ecg_stack_size() == 4096 ? 0 : 1);
    }"""
    done = run(tmp_path, core, text, stack=4096)
    before, after = map(int, done.text.split())
    assert done.code == 0 and 8 <= before < 200 and before + 560 <= after <= before + 680


def test_an_interrupt_reaches_the_image_with_its_number(tmp_path):
    text = """static volatile int32_t seen = -1, ticks;
    void ecg_irq(int32_t number) { seen = number; }
    void ecg_tick(void) { ticks++; }
    int main(void)
    {
        *(volatile uint32_t *)0xe000e100u = 1u << 5;        /* enable, then set pending, interrupt 5 */
        *(volatile uint32_t *)0xe000e200u = 1u << 5;
        while (seen < 0)
            ;
        *(volatile uint32_t *)0xe000e014u = 999;
        *(volatile uint32_t *)0xe000e018u = 0;
        *(volatile uint32_t *)0xe000e010u = 7;
        while (ticks < 3)
            ;
        ecg_exit(seen == 5 ? 0 : 1);
    }"""
    assert run(tmp_path, "m4", text).code == 0


# the first UART of a machine: enable, wait for a byte and take it, wait for room and send it
UARTS = {
    "mps2-an386": """#define R(at) (*(volatile uint32_t *)(0x40004000u + (at)))
        static void begin(void) { R(16) = 16; R(8) = 3; }
        static uint32_t take(void) { while (!(R(4) & 2)) ; return R(0); }
        static void give(uint32_t x) { while (R(4) & 1) ; R(0) = x; }""",
    "netduinoplus2": """#define R(at) (*(volatile uint32_t *)(0x40011000u + (at)))
        static void begin(void) { R(12) = 0x200c; }
        static uint32_t take(void) { while (!(R(0) & 32)) ; return R(4) & 255; }
        static void give(uint32_t x) { while (!(R(0) & 128)) ; R(4) = x & 255; }"""}


@pytest.mark.parametrize("form", ["tcp", "pty"])
@pytest.mark.parametrize("name", UARTS)
def test_every_byte_reaches_a_uart_and_comes_back(tmp_path, name, form):
    on = emulate.MACHINES[name]
    text = UARTS[name] + """int main(void)
    {
        begin();
        for (const char *c = "hello"; *c; c++)
            give((uint8_t)*c);
        for (;;)
            give(take() ^ 0x55);
    }"""
    elf, sent = image(tmp_path, on.core, text, on), bytes(range(256)) * 4
    with contextlib.ExitStack() as stack:
        if form == "tcp":
            port = serial.serial_for_url(stack.enter_context(emulate.on_tcp(elf, on)), timeout=20)
        else:
            path, start = stack.enter_context(emulate.on_pty(elf, on))
            port = serial.Serial(path, timeout=20)
            start()
        stack.enter_context(port)
        assert port.read(5) == b"hello"
        for at in range(0, len(sent), 64):
            port.write(sent[at:at + 64])
            assert port.read(64) == bytes(x ^ 0x55 for x in sent[at:at + 64])


def test_an_emulator_that_cannot_start_says_why(tmp_path):
    elf = image(tmp_path, "m3", "int main(void) { return 0; }")
    with pytest.raises(UserError, match=r"did not start.*unknown"):
        with emulate.on_tcp(elf, emulate.machine("m3"), extra=["-unknown"]):
            pass


def test_an_image_that_does_not_end_is_stopped_and_what_it_printed_is_shown(tmp_path):
    elf = image(tmp_path, "m3", 'int main(void) { ecg_print("here"); for (;;) ; }')
    with pytest.raises(UserError, match=r"(?s)within 0.5 s.*here"):
        emulate.run(elf, emulate.machine("m3"), seconds=0.5)


@pytest.mark.parametrize("core", emulate.OF_CORE)
def test_the_counter_counts_every_instruction(core):
    need(core)
    found = emulate.bench_c(core, [], SPIN + """int main(void)
    {
        for (uint32_t i = 0; i < 2; i++) {
            ecg_mark("million");
            spin(1000000);
        }
        ecg_mark("half");
        spin(500000);
        ecg_mark("");
        ecg_exit(0);
    }""")
    assert found["million"].functions["spin"] == 2 * 2_000_001        # subs and bne a million times, bx
    assert found["half"].functions["spin"] == 1_000_001
    call = found["half"].total - 1_000_001
    assert 3 <= call <= 6           # the argument, the call, and the next mark's name and call
    assert len(found["million"].visits) == 2 and max(found["million"].visits) <= 2_000_001 + 8
    assert found["million"].total == sum(found["million"].functions.values())


def test_the_emulators_clock_agrees_with_the_counter(tmp_path):
    elf = image(tmp_path, "m4", SPIN + """int main(void)
    {
        volatile uint32_t *tick = (uint32_t *)0xe000e010u;
        tick[1] = 0xffffff;
        tick[2] = 0;
        tick[0] = 5;                /* the processor's clock, no interrupt */
        uint32_t start = tick[2];
        spin(1000000);
        uint32_t end = tick[2];
        ecg_print_int((int32_t)((start - end) & 0xffffffu));
        ecg_exit(0);
    }""")
    on = emulate.machine("m4")
    ticks = int(emulate.run(elf, on, extra=("-icount", "shift=0")).text)
    assert abs(ticks - 2_000_006 * on.hz / 1e9) <= 1        # an instruction takes 1 ns of the emulator's time


def test_counts_are_the_same_in_every_run_and_split_by_function(tmp_path):
    elf = image(tmp_path, "m4", SPIN + """
    __attribute__((noinline)) void outer(void) { spin(10); spin(20); }
    int main(void) { ecg_mark("two"); outer(); ecg_mark(""); ecg_exit(0); }""")
    first, second = (emulate.count(elf, emulate.machine("m4"))[0] for _ in range(2))
    assert first == second
    assert first["two"].functions["spin"] == 62 and set(first["two"].functions) == {"main", "outer", "spin"}


def test_code_that_does_not_end_well_is_not_counted():
    need("m4")
    with pytest.raises(UserError, match="ended with 9"):
        emulate.bench_c("m4", [], "int main(void) { ecg_exit(9); }")


@pytest.mark.parametrize("using", ["gcc", "zig"])
def test_the_model_lies_where_it_was_asked_for_and_is_kept(tmp_path, using):
    text = """__attribute__((section(".ecg_model"))) const uint32_t weight[3] = { 1, 2, 3 };
    static uint32_t variable = 5;
    int main(void) { ecg_exit(ecg_model_end - ecg_model_start == 12 ? (int32_t)(variable - 5) : 1); }"""
    on = emulate.machine("m4")
    elf = image(tmp_path, "m4", text, model=0x10000, using=using)
    built = toolchain.Image(elf)
    assert emulate.run(elf, on).code == 0
    assert built.sections[".ecg_model"] == Region(0x10000, 12) and built.read(0x10004, 4) == b"\2\0\0\0"
    behind = toolchain.Image(image(tmp_path, "m4", text, using=using))
    assert 0 < behind.sections[".ecg_model"].origin < 0x10000 and behind.sections[".ecg_model"].origin % 16 == 0
    assert behind.sections[".vectors"].origin == on.flash.origin
    assert behind.sections[".stack"] == Region(on.ram.origin, 2048)
    assert behind.flash < 4000 and behind.ram == 2048 + sum(map(behind.size, (".data", ".bss", ".noinit")))


@pytest.mark.parametrize("model", [8, 0x10008, 0x0700_0000])
def test_a_model_cannot_lie_outside_the_flash_or_askew(tmp_path, model):
    with pytest.raises(UserError, match="cannot lie at"):
        toolchain.script(tmp_path / "s.ld", Region(0, 1 << 20), Region(0x2000_0000, 1 << 16), model=model)


def test_what_does_not_fit_is_refused_in_the_linkers_words(tmp_path):
    with pytest.raises(UserError, match="RAM"):
        image(tmp_path, "m4", "static volatile char big[5 << 20]; int main(void) { return big[9]; }")


def test_an_object_of_ours_is_kept_until_its_file_a_header_or_a_flag_changes(tmp_path, monkeypatch):
    need("m4")
    ours = tmp_path / "c"
    ours.mkdir()
    monkeypatch.setattr(toolchain, "KERNELS", ours)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (ours / "a.c").write_text('#include "a.h"\nint a(void) { return A; }\n')
    (ours / "a.h").write_text("#define A 1\n")

    def made(*flags) -> tuple[Path, int]:
        path, = toolchain.compile("m4", [ours / "a.c"], tmp_path, flags=flags)
        return path, path.stat().st_mtime_ns
    first = made()
    assert made() == first and made("-O3")[0] != first[0]
    (ours / "a.h").write_text("#define A 2\n")
    assert made()[0] != first[0]
    (ours / "a.h").write_text("#define A 1\n")
    assert made() == first


def test_wrong_code_is_shown_with_the_compilers_words(tmp_path):
    with pytest.raises(UserError, match=r"main.c:\d+:\d+: error"):
        image(tmp_path, "m4", "int main(void) { return missing_name; }")


def test_without_tools_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(toolchain, "find_spec", lambda name: None)
    assert toolchain.missing("m4") == ("no C compiler for a Cortex-M4: pip install ziglang, or "
                                       "apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi")
    assert "Cortex-M0+" in toolchain.missing("m0plus")
    assert emulate.missing() == "qemu-system-arm is not installed: apt-get install qemu-system-arm"
    with pytest.raises(MissingError, match="Cortex-M55"):
        toolchain.compiler("m55")
    with pytest.raises(MissingError, match="qemu-system-arm"):
        emulate.run(Path("x.elf"), emulate.machine("m4"))


def test_an_unknown_core_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="m0plus"):
        toolchain.missing("m0")


@pytest.mark.parametrize("compiler", ["gcc", "clang-19"])
def test_the_counting_plugin_has_no_warnings(tmp_path, compiler):
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not installed")
    subprocess.run([compiler, "-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-shared", "-fPIC",
                    emulate.PLUGIN, "-o", tmp_path / "plugin.so"], check=True)


@pytest.mark.parametrize("core", emulate.OF_CORE)
@pytest.mark.parametrize("using", ["gcc", "zig"])
def test_the_start_up_code_has_no_warnings(tmp_path, core, using):
    need(core, using)
    toolchain.compile(core, [*toolchain.STARTUP, toolchain.SEMIHOST], tmp_path, using=using,
                      flags=["-Wconversion", "-Wno-sign-conversion", "-Werror"])
