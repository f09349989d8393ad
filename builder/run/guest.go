package run

import "kiln/builder/run/launcher"

// LauncherSpec returns what the launcher does for a plan, by the paths of package
// launcher; entrypoint is the image's own entrypoint and command. Environment, secrets,
// folder and source are the container's. It holds no secrets.
func LauncherSpec(p Plan, entrypoint []string) launcher.Spec {
	s := launcher.Spec{
		Entrypoint: entrypoint, Results: launcher.ResultsFile, MaxResults: MaxResults,
		Report: launcher.ReportFile, Started: launcher.StartedFile,
	}
	for _, c := range p.Commands {
		command := launcher.Command{Needs: c.Needs, Args: c.Args}
		for _, v := range c.Env {
			command.Env = append(command.Env, v.Name+"="+v.Value)
		}
		s.Commands = append(s.Commands, command)
	}
	for _, f := range p.Files {
		s.Files = append(s.Files, launcher.File(f))
	}
	return s
}
