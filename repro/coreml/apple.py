"""Apple's own framework as a backend: on this Mac, or on a connected iPhone through coremltools' remote device.

Both go through coremltools' MLModelAsyncWrapper, which reports how long the framework's own prediction call took, in
nanoseconds, without Python, transfers and conversions. The remote device is experimental in coremltools 9: it builds
and signs a small app with Xcode, and each prediction is a round trip, so that they are not back to back.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from repro.coreml.latency import NEURAL_ENGINE, BackendError, Conditions, DeviceInfo, Placed, Session
from repro.coreml.quiet import import_coremltools, muffled
from repro.results.latency import UNKNOWN

T = TypeVar("T")
#: What Apple's product types are sold as, and their chips: phones that latencies of mobile networks are printed for.
PHONES = {
    "iPhone12,1": ("iPhone 11", "A13 Bionic"),
    "iPhone12,3": ("iPhone 11 Pro", "A13 Bionic"),
    "iPhone12,8": ("iPhone SE (2nd generation)", "A13 Bionic"),
    "iPhone13,1": ("iPhone 12 mini", "A14 Bionic"),
    "iPhone13,2": ("iPhone 12", "A14 Bionic"),
    "iPhone13,3": ("iPhone 12 Pro", "A14 Bionic"),
    "iPhone13,4": ("iPhone 12 Pro Max", "A14 Bionic"),
    "iPhone14,4": ("iPhone 13 mini", "A15 Bionic"),
    "iPhone14,5": ("iPhone 13", "A15 Bionic"),
    "iPhone14,2": ("iPhone 13 Pro", "A15 Bionic"),
    "iPhone14,3": ("iPhone 13 Pro Max", "A15 Bionic"),
    "iPhone14,6": ("iPhone SE (3rd generation)", "A15 Bionic"),
    "iPhone14,7": ("iPhone 14", "A15 Bionic"),
    "iPhone15,2": ("iPhone 14 Pro", "A16 Bionic"),
    "iPhone15,3": ("iPhone 14 Pro Max", "A16 Bionic"),
    "iPhone15,4": ("iPhone 15", "A16 Bionic"),
    "iPhone16,1": ("iPhone 15 Pro", "A17 Pro"),
    "iPhone16,2": ("iPhone 15 Pro Max", "A17 Pro"),
}
_UNITS = {"all": "ALL", "cpu_and_ne": "CPU_AND_NE", "cpu_and_gpu": "CPU_AND_GPU", "cpu_only": "CPU_ONLY"}
_KINDS = {"MLNeuralEngineComputeDevice": NEURAL_ENGINE, "MLGPUComputeDevice": "gpu", "MLCPUComputeDevice": "cpu"}


def _said(*command: str) -> str:
    """What a system command prints, or nothing."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _xcode() -> str:
    lines = _said("xcodebuild", "-version").splitlines()
    return " ".join(lines).replace("Xcode ", "") if lines else UNKNOWN


def steps(*, team: str | None, profile: str | None) -> list[tuple[str, bool, str]]:
    """What measuring on an iPhone needs: each step, whether it is done, and how to do it."""
    mac = platform.system() == "Darwin"
    package = importlib.util.find_spec("coremltools")  # found, not imported: that takes seconds
    places = [Path(folder) for folder in (package.submodule_search_locations or ())] if package is not None else []
    runner = any((place / "modelrunner" / "ModelRunner.xcworkspace").is_dir() for place in places)
    devices = _phones() if mac and shutil.which("xcrun") else []
    return [
        ("macOS 12 or later", mac, "Core ML predicts only on macOS"),
        ("Xcode 15 or later", bool(shutil.which("xcodebuild")), "install Xcode and run: xcode-select --install"),
        ("devicectl", bool(shutil.which("xcrun") and _said("xcrun", "--find", "devicectl")), "comes with Xcode 15"),
        ("the runner's sources", runner, "they are in coremltools' wheel for macOS only"),
        ("signing", bool(team or profile), "give --team or REPRO_APPLE_TEAM (or --profile, REPRO_APPLE_PROFILE)"),
        ("a connected iPhone", any(item["connected"] for item in devices), "connect by cable, unlock, trust this Mac"),
        ("developer mode on it", any(item["developer"] for item in devices),
         "Settings, Privacy & Security, Developer Mode on the phone"),
    ]  # fmt: skip


def _phones() -> list[dict[str, Any]]:
    """The phones that devicectl knows; coremltools' own list leaves out what they are sold as."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "devices.json"
        _said("xcrun", "devicectl", "list", "devices", "-j", str(file))
        try:
            devices = json.loads(file.read_text(encoding="utf-8"))["result"]["devices"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
    found = []
    for item in devices:
        hardware, properties = item.get("hardwareProperties", {}), item.get("deviceProperties", {})
        if hardware.get("deviceType", "").lower() == "iphone":
            found.append(
                {
                    "identifier": item.get("identifier", ""),
                    "product": hardware.get("productType", UNKNOWN),
                    "sold_as": hardware.get("marketingName", UNKNOWN),
                    "connected": item.get("connectionProperties", {}).get("tunnelState") == "connected",
                    "developer": properties.get("developerModeStatus") == "enabled",
                }
            )
    return found


class _Apple:
    """What this Mac and a phone have in common."""

    def __init__(self) -> None:
        if platform.system() != "Darwin":
            raise BackendError("Core ML predicts only on macOS; records measured on a Mac are taken with: "
                               "repro records import FILE")  # fmt: skip
        self._ct = import_coremltools()
        self._loop = asyncio.new_event_loop()

    def _remote(self) -> Any:
        """coremltools' Device, or None for this Mac."""
        return None

    def _takes(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return inputs

    def conditions(self) -> Conditions:
        """Thermal state and low-power mode now."""
        return Conditions(thermal_state=UNKNOWN, low_power_mode=UNKNOWN)

    @contextmanager
    def session(self, package: Path, compute_units: str) -> Iterator[Session]:
        """Load a package."""
        from coremltools.models.ml_program.experimental.async_wrapper import MLModelAsyncWrapper

        model = self._asked(
            lambda: MLModelAsyncWrapper.from_spec_or_path(
                spec_or_path=str(package),
                weights_dir="",  # a path brings its own
                compute_units=getattr(self._ct.ComputeUnit, _UNITS[compute_units]),
                device=self._remote(),
            )
        )
        self._wait(model.load(), f"{package}: cannot be loaded")
        try:
            yield _Loaded(self, model)
        finally:
            self._wait(model.unload(), f"{package}: cannot be unloaded")

    def _asked(self, call: Callable[[], T]) -> T:
        with muffled():
            try:
                return call()
            except Exception as error:  # the boundary to the framework, which raises plain Exceptions
                raise BackendError(_line(error)) from error

    def _wait(self, work: Coroutine[Any, Any, T], what: str) -> T:
        with muffled():
            try:
                return self._loop.run_until_complete(work)
            except Exception as error:
                raise BackendError(f"{what}: {_line(error)}") from error


class _Loaded:
    """A loaded model."""

    def __init__(self, backend: _Apple, model: Any) -> None:
        self._backend, self._model = backend, model

    def predict(self, inputs: Mapping[str, Any]) -> float:
        """One prediction, in milliseconds of the framework's call."""
        # No redirection of the screen here: it would run between two predictions and let the device go idle.
        try:
            self._backend._loop.run_until_complete(self._model.predict(self._backend._takes(inputs)))
        except Exception as error:
            raise BackendError(f"cannot predict: {_line(error)}") from error
        took = self._model.last_predict_duration_in_nano_seconds
        if took is None:
            raise BackendError("coremltools does not say how long the prediction took")
        return float(took) / 1e6

    def placement(self) -> Sequence[Placed]:
        """The compute plan's view of the main function."""
        plan = self._backend._wait(self._model.retrieve_compute_plan(), "no compute plan")
        program = plan.model_structure.program
        if program is None:
            raise BackendError("the compute plan is not that of an ML program")
        found: list[Placed] = []
        for function in program.functions.values():
            _walk(plan, function.block, found)
        return found

    def conditions(self) -> Conditions:
        """Thermal state and low-power mode now."""
        return self._backend.conditions()


def _walk(plan: Any, block: Any, found: list[Placed]) -> None:
    for operation in block.operations:
        usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
        cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
        found.append(
            Placed(
                name=operation.outputs[0].name if operation.outputs else operation.operator_name,
                # the framework prefixes the opset that an operator comes from: ios15.conv
                type=operation.operator_name.rpartition(".")[2],
                device="unknown" if usage is None else _kind(usage.preferred_compute_device),
                supported=() if usage is None else tuple(_kind(item) for item in usage.supported_compute_devices),
                cost=None if cost is None else float(cost.weight),
            )
        )
        for inner in operation.blocks:
            _walk(plan, inner, found)


def _kind(device: Any) -> str:
    return _KINDS.get(type(device).__name__, "unknown")


def _line(error: BaseException) -> str:
    text = next(iter(str(error).strip().splitlines()), "")
    return text or type(error).__name__


class Mac(_Apple):
    """This Mac."""

    def device(self) -> DeviceInfo:
        """What the system says of itself."""
        identifier = _said("sysctl", "-n", "hw.model") or UNKNOWN
        sold = re.search(r'"product-name" = <"([^"]+)">', _said("ioreg", "-r", "-k", "product-name", "-d", "1"))
        return DeviceInfo(
            model=sold[1] if sold else identifier,
            identifier=identifier,
            chip=_said("sysctl", "-n", "machdep.cpu.brand_string") or UNKNOWN,
            os_version=f"macOS {_said('sw_vers', '-productVersion') or UNKNOWN}",
            os_build=_said("sw_vers", "-buildVersion") or UNKNOWN,
            coremltools=self._ct.__version__,
            xcode=_xcode(),
        )

    def conditions(self) -> Conditions:
        """What pmset says of throttling and of the low-power mode."""
        limits = re.findall(r"(\w+_Limit)\s*=\s*(\d+)", _said("pmset", "-g", "therm"))
        power = re.search(r"lowpowermode\s+(\d)", _said("pmset", "-g"))
        thermal = ", ".join(f"{name} {value}" for name, value in limits) or (
            "no warning recorded" if "No thermal warning" in _said("pmset", "-g", "therm") else UNKNOWN
        )
        return Conditions(
            thermal_state=thermal, low_power_mode=UNKNOWN if power is None else ("on" if power[1] == "1" else "off")
        )


class Phone(_Apple):
    """A connected iPhone, through the app that coremltools builds, signs and starts on it.

    Parameters
    ----------
    device
        Its name or identifier; by default the only connected one.
    team, profile, bundle
        How Xcode signs the app: a development team, or the UUID of a provisioning profile and its bundle identifier.
    working
        Folder of the app's build, kept so that only the first start builds.
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        team: str | None = None,
        profile: str | None = None,
        bundle: str | None = None,
        working: str | None = None,
    ) -> None:
        super().__init__()
        for name, done, how in steps(team=team, profile=profile):
            if not done:
                raise BackendError(f"measuring on an iPhone needs {name}: {how} (repro doctor lists every step)")
        from coremltools.models.ml_program.experimental import remote_device

        phones = self._asked(
            lambda: remote_device.Device.get_connected_devices(device_type=remote_device.DeviceType.IPHONE)
        )
        wanted = [item for item in phones if device is None or device in (item.name, item.identifier, item.udid)]
        if len(wanted) != 1:
            listed = ", ".join(f"{item.name} ({item.identifier})" for item in phones) or "none"
            raise BackendError(f"{len(wanted)} connected iPhones are called {device or 'anything'}: {listed}")
        credentials = remote_device.AppSigningCredentials(
            development_team=team, provisioning_profile_uuid=profile, bundle_identifier=bundle
        )
        folder = Path(working or tempfile.mkdtemp(prefix="repro-modelrunner-"))
        folder.mkdir(parents=True, exist_ok=True)
        self._device = self._wait(
            wanted[0].prepare_for_model_debugging(credentials=credentials, working_directory=folder),
            f"{wanted[0].name}: the runner cannot be started",
        )

    def _remote(self) -> Any:
        return self._device

    def _takes(self, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        if not all(isinstance(value, np.ndarray) for value in inputs.values()):
            raise BackendError("coremltools sends only tensors to a device: export with --input tensor")
        return inputs

    def device(self) -> DeviceInfo:
        """What devicectl says of the phone."""
        known = next((item for item in _phones() if item["identifier"] == self._device.identifier), None)
        product = known["product"] if known is not None else UNKNOWN
        sold_as, chip = PHONES.get(product, (known["sold_as"] if known is not None else UNKNOWN, UNKNOWN))
        return DeviceInfo(
            model=sold_as if sold_as != UNKNOWN else product,
            identifier=product,
            chip=chip,
            os_version=f"iOS {self._device.os_version or UNKNOWN}",
            os_build=self._device.os_build_number or UNKNOWN,
            coremltools=self._ct.__version__,
            xcode=_xcode(),
        )
