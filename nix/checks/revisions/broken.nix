{
  environment.etc.revision.text = "broken";
  system.activationScripts.migrate = "echo 'cannot migrate the database' >&2; exit 1";
}
