# The controller with the programs that it drives.
{
  lib,
  rustPlatform,
  makeWrapper,
  nix,
  git,
  openssh,
  gnupg,
}:
let
  manifest = lib.importTOML ../Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = "nixos-host-controller";
  inherit (manifest.workspace.package) version;

  src = lib.fileset.toSource {
    root = ../.;
    # cargo wants the manifests of all members of the workspace, and what they build
    fileset = lib.fileset.unions [
      ../Cargo.toml
      ../Cargo.lock
      ../src
      ../crd
      ../e2e/Cargo.toml
      ../e2e/src
      ../e2e/bench
    ];
  };
  cargoLock.lockFile = ../Cargo.lock;
  cargoBuildFlags = [
    "--package"
    "nixos-host-controller"
  ];
  # They want root, namespaces and a control plane: `make test`
  doCheck = false;

  nativeBuildInputs = [ makeWrapper ];
  # Behind the PATH that it is started with: an operator's Nix comes first
  postInstall = ''
    wrapProgram $out/bin/nixos-host-controller --suffix PATH : ${
      lib.makeBinPath [
        nix
        git
        openssh
        gnupg
      ]
    }
  '';

  meta = {
    inherit (manifest.package) description;
    license = lib.licenses.asl20;
    mainProgram = "nixos-host-controller";
    platforms = lib.platforms.linux;
  };
}
