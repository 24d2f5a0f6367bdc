# What NixOS gives modules as `utils`: systemd reads `%` and `$` in a command line.
lib:
let
  escape = text: builtins.replaceStrings [ "%" "$" ] [ "%%" "$$" ] (builtins.toJSON (toString text));
in
{
  escapeSystemdExecArgs = lib.concatMapStringsSep " " escape;
}
