# The image: the controller, Nix and git for a user who is not root. What it is like (user, entry point, environment, places) is said once, for this one
# and for the one that the tests make.
{
  lib,
  dockerTools,
  closureInfo,
  writeTextDir,
  nixos-host-controller,
  nix,
  gitMinimal,
  openssh,
  gnupg,
  bash,
  coreutils,
  cacert,
}:
let
  image = lib.importJSON ../e2e/world/image/description.json;
  id = "${toString image.uid}:${toString image.gid}";

  # Programs come as links in /bin. Below them is the store: on a volume it is a copy of this one
  contents = [
    nixos-host-controller
    nix
    gitMinimal
    openssh
    gnupg
    bash
    coreutils
    cacert
    (writeTextDir "etc/passwd" ''
      root:x:0:0::/:/bin/sh
      ${image.user}:x:${id}::${image.env.HOME}:/bin/sh
    '')
    (writeTextDir "etc/group" ''
      root:x:0:
      ${image.user}:x:${toString image.gid}:
    '')
    (writeTextDir "etc/nix/nix.conf" "build-users-group =\n")
  ];
in
dockerTools.streamLayeredImage {
  inherit (image) name uid gid;
  tag = nixos-host-controller.version;
  uname = image.user;
  gname = image.user;
  inherit contents;

  # What the store has, for whoever copies it to a volume; and for Nix in here
  extraCommands = ''
    cp ${closureInfo { rootPaths = contents; }}/registration ./${image.paths.registration}
  '';
  fakeRootCommands = ''
    mkdir -p ${lib.concatMapStringsSep " " (path: ".${path}") image.paths.writable}
    chown -R ${id} ${lib.concatMapStringsSep " " (path: ".${path}") image.paths.writable}
  '';

  config = {
    User = id;
    Entrypoint = image.entrypoint;
    WorkingDir = image.workingDirectory;
    Env = lib.mapAttrsToList (name: value: "${name}=${value}") image.env;
    ExposedPorts = {
      "8080/tcp" = { };
      "8081/tcp" = { };
    };
    Labels."org.opencontainers.image.licenses" = "Apache-2.0";
  };
}
