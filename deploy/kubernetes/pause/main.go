// Command pause keeps a Pod's namespaces alive: it sleeps until it is killed.
package main

import "time"

func main() { time.Sleep(1<<63 - 1) }
