{ environment.etc.revision.text = "next"; }
