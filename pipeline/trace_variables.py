"""OpenTelemetry's environment variables, as far as they decide whether there is an SDK at all.

The SDK reads them itself; where it would go on with something else than was asked for, they are refused here first.
"""

import re
from urllib.parse import urlsplit

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipeline.errors import SettingsError

_EXPORTERS = ("otlp", "console", "none")
_SAMPLERS = ("always_on", "always_off", "traceidratio")


class TraceVariables(BaseSettings):
    """OpenTelemetry's environment variables that are looked at here; an empty one is one that is not set."""

    model_config = SettingsConfigDict(env_ignore_empty=True, extra="ignore", frozen=True, case_sensitive=True)

    disabled: str = Field("", validation_alias="OTEL_SDK_DISABLED")
    exporter: str = Field("", validation_alias="OTEL_TRACES_EXPORTER")
    endpoint: str = Field("", validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    traces_endpoint: str = Field("", validation_alias="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    protocol: str = Field("", validation_alias="OTEL_EXPORTER_OTLP_PROTOCOL")
    traces_protocol: str = Field("", validation_alias="OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
    sampler: str = Field("", validation_alias="OTEL_TRACES_SAMPLER")
    sampler_arg: str = Field("", validation_alias="OTEL_TRACES_SAMPLER_ARG")
    resource: str = Field("", validation_alias="OTEL_RESOURCE_ATTRIBUTES")

    def exporters(self) -> list[str]:
        """Which exporters are wanted; none where nobody wants spans.

        Raises:
            SettingsError: a variable cannot mean what it says.
        """
        if self.disabled.strip().lower() == "true":
            return []
        names = [name.strip().lower() for name in self.exporter.split(",") if name.strip()]
        if not names and (self.endpoint or self.traces_endpoint):
            names = ["otlp"]
        for name in names:
            if name not in _EXPORTERS or (name == "none" and len(names) > 1):
                raise _refused("OTEL_TRACES_EXPORTER", self.exporter, "otlp, console, both, or none")
        wanted = [name for name in names if name != "none"]
        if wanted:
            self._check_sampler()
        if "otlp" in wanted:
            self._check_collector()
        return list(dict.fromkeys(wanted))

    def _check_sampler(self) -> None:
        sampler = self.sampler.strip().lower()
        if sampler and sampler.removeprefix("parentbased_") not in _SAMPLERS:
            expected = ", ".join(f"{prefix}{name}" for name in _SAMPLERS for prefix in ("", "parentbased_"))
            raise _refused("OTEL_TRACES_SAMPLER", self.sampler, f"one of {expected}")
        if sampler.endswith("traceidratio") and self.sampler_arg:
            try:
                share = float(self.sampler_arg)
            except ValueError:
                share = -1.0
            if not 0.0 <= share <= 1.0:
                raise _refused("OTEL_TRACES_SAMPLER_ARG", self.sampler_arg, "a share of all traces from 0 to 1")

    def _check_collector(self) -> None:
        signal = "OTEL_EXPORTER_OTLP_TRACES"
        given: dict[str, tuple[str, str]] = {
            "ENDPOINT": (self.endpoint, self.traces_endpoint),
            "PROTOCOL": (self.protocol, self.traces_protocol),
        }
        for what, (general, own) in given.items():
            name, text = (f"{signal}_{what}", own) if own else (f"OTEL_EXPORTER_OTLP_{what}", general)
            if what == "PROTOCOL" and text and text.strip().lower() != "http/protobuf":
                raise _refused(name, text, "http/protobuf, which every collector takes, by default on port 4318")
            if what == "ENDPOINT" and text and not _is_url(text):
                raise _refused(name, text, "the collector's address, as http://127.0.0.1:4318")


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _refused(name: str, text: str, expected: str) -> SettingsError:
    shown = re.sub(r"//[^/@]*@", "//…@", text)  # a password is not printed
    return SettingsError(f"setting {name} is {shown!r:.200}: {expected} was expected")
