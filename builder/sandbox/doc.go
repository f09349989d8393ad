// Package sandbox is a builder.Engine that runs the Kaniko executor in a container
// of an OCI runtime (runc, crun or runsc) on this machine.
//
// Every build has a container of its own: user, mount, pid, ipc, uts and cgroup
// namespaces, user ids mapped to a range that no other running build has, a bounding
// set of capabilities that is what package managers need, a seccomp filter, limits of
// memory, CPU, processes, disk and time, and nothing of the host's environment. It
// shares the host's network: a build reaches what the host reaches, loopback
// included.
//
// The executor gains a capability when it is executed, and Linux keeps memory,
// environment and descriptors of such a process from every other process of the
// container. Credentials, secrets and the key of a client certificate travel in that
// environment, so that a RUN command sees the secrets that it mounts, and no
// credentials. Identity tokens are the exception: the executor takes them from a file
// only, which commands can read.
//
// Commands may gain privileges inside the container by set-uid programs such as
// sudo, as in docker build: they are root there already, and root there is nobody on
// the host.
//
// Build roots are below StateDir or on a tmpfs, whose mount exists only in the mount
// namespace of one thread of this process and of the container, so that it goes when
// they go, whatever ends them.
//
// A container ends with its build. When this process ends without a chance to clean
// up, a guard, which is a shell that waits for that, deletes the container, and the
// next New on the same StateDir removes what is left.
package sandbox
