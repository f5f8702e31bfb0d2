"""One request into Kafka, and its result out again."""
