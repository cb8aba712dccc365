-- MLflow keeps its runs and models beside Ringfence's tables, in a database of its own.
CREATE DATABASE mlflow OWNER ringfence;
